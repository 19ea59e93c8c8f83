"""Stage store_soft_labels: the teachers' answers to views that are drawn beforehand, for students with view: stored."""

from pipeline.compute.device import choose_device
from pipeline.compute.distributed import join
from pipeline.config import Params
from pipeline.lineage import Run
from pipeline.soft_labels.storing import make_soft_labels, planned_bytes, planned_views
from pipeline.store.paths import CHECKPOINTS
from pipeline.training.session import Session
from stages.launcher import run_together
from stages.progress import progress


def store_soft_labels(params: Params) -> None:
    run, device = Run(), choose_device(params.device)
    images, classes = run.data.counts.train, len(run.data.class_names)
    views = planned_views(params, images)
    with join(device) as world:
        if world.is_main and views:
            print(f"soft labels: {views:,} views will fill {planned_bytes(params, images, classes) / 1e6:,.1f} MB")
        with progress("store_soft_labels", views, "view", shown=world.is_main) as advance:
            session = Session(device, world, CHECKPOINTS, keep=True, on_images=advance, tell=print)
            card = make_soft_labels(run, params, session)
    if card is not None:
        teachers = f", the mean of {1 + len(card.teachers)} teachers" if card.teachers else ""
        print(f"soft labels: {card.kept} of {classes} classes of each view{teachers}" if views else "soft labels: none")


if __name__ == "__main__":
    run_together(store_soft_labels, "stages.store_soft_labels")
