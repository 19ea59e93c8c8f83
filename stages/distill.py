"""Stage distill: train the student with energy temperatures and HE-DA companion batches."""

from pipeline.compute.device import choose_device
from pipeline.config import Params
from pipeline.distillation.student import make_student
from pipeline.lineage import Run
from stages.curves import sign_curves, training_session
from stages.launcher import run_together


def distill(params: Params) -> None:
    run, device, training = Run(), choose_device(params.device), params.distill.training
    with training_session(run, "student", device, training.epochs, training.batch_size) as session:
        card = make_student(run, params, session)
    if card is not None:
        sign_curves(run, card)
        print(f"student {card.network}: validation top-1 {card.val_top1:.2%}")


if __name__ == "__main__":
    run_together(distill, "stages.distill")
