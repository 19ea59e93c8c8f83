"""Stage train_teacher: train the teacher, or take a given checkpoint; either way check its accuracy."""

from __future__ import annotations

from pipeline.compute.device import choose_device
from pipeline.compute.distributed import join
from pipeline.config import Params
from pipeline.data.loader import steps_per_epoch
from pipeline.data.store import read_card
from pipeline.store.paths import CHECKPOINTS, DATA, TEACHER, TEACHER_CURVES
from pipeline.store.space import require_space
from pipeline.training.teacher import make_teacher
from stages.curves import learning_curves, write_lineage
from stages.launcher import run_together


def train_teacher(params: Params) -> None:
    device = choose_device(params.device)
    training = params.teacher.training
    epochs = training.epochs if params.teacher.checkpoint is None else 0
    steps = steps_per_epoch(read_card(DATA)["counts"]["train"], training.batch_size)
    require_space(TEACHER_CURVES, 0, "the learning curves")
    with join(device) as world, learning_curves(TEACHER_CURVES, "teacher", epochs, steps, world) as curves:
        card = make_teacher(
            TEACHER, DATA, params, device, CHECKPOINTS, world=world, on_step=curves.step, on_epoch=curves.epoch
        )
    if world.first:
        write_lineage(TEACHER_CURVES, card)
        print(f"teacher {card['network']} ({card['source']}): validation top-1 {card['val_top1']:.2%}")


if __name__ == "__main__":
    run_together(train_teacher, "stages.train_teacher")
