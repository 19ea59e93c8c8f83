"""Stage distill: train a student with energy temperatures and HE-DA companion batches."""

from pipeline.compute.device import choose_device
from pipeline.config import Params
from pipeline.distillation.student import make_student
from pipeline.lineage import Run
from stages.common import student_argument
from stages.curves import sign_curves, training_session
from stages.launcher import run_together


def distill(params: Params, name: str) -> None:
    student, device, training = Run().network(name), choose_device(params.device), params.students[name].training
    with training_session(student, device, training.epochs, training.batch_size) as session:
        card = make_student(student.run, name, params, session)
    if card is not None:
        sign_curves(student, card)
        print(f"{name} {card.network}: validation top-1 {card.val_top1:.2%}")


if __name__ == "__main__":
    run_together(distill, "stages.distill", student_argument("stages.distill", __doc__))
