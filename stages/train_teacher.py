"""Stage train_teacher: train the teacher, or take a given checkpoint; either way check its accuracy."""

from pipeline.compute.device import choose_device
from pipeline.config import TEACHER, Params
from pipeline.lineage import Run
from pipeline.training.teacher import make_teacher
from stages.curves import sign_curves, training_session
from stages.launcher import run_together


def train_teacher(params: Params) -> None:
    run, device, training = Run(), choose_device(params.device), params.teacher.training
    epochs = training.epochs if params.teacher.checkpoint is None else 0
    with training_session(run.network(TEACHER), device, epochs, training.batch_size) as session:
        card = make_teacher(run, params, session)
    if card is not None:
        sign_curves(run.network(TEACHER), card)
        print(f"teacher {card.network} ({card.source}): validation top-1 {card.val_top1:.2%}")


if __name__ == "__main__":
    run_together(train_teacher, "stages.train_teacher")
