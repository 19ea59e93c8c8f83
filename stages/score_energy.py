"""Stage score_energy: energy of every training image, its group, and the same for the test images."""

import numpy as np

from pipeline.compute.device import choose_device
from pipeline.compute.distributed import join
from pipeline.config import Params
from pipeline.energy.scoring import score_splits
from pipeline.lineage import Run
from pipeline.portable.files import atomic_file
from pipeline.store.json_files import write_json
from pipeline.store.paths import CHECKPOINTS, ENERGY_HISTOGRAM, ENERGY_METRICS
from pipeline.store.space import require_space
from pipeline.training.session import Session
from stages.launcher import run_together
from stages.progress import progress


def score_energy(params: Params) -> None:
    run, device = Run(), choose_device(params.device)
    with join(device) as world:
        with world.barrier():
            images = run.data.counts.train + run.data.counts.test
            if world.is_main:
                require_space(ENERGY_METRICS, 0, "the metrics")
        with progress("score_energy", images, "image", shown=world.is_main) as advance:
            session = Session(device, world, CHECKPOINTS, keep=True, on_images=advance)
            scored = score_splits(run, params.energy, session)
    if scored is None:
        return
    energy = scored.energy.numpy()
    counts, edges = np.histogram(energy, bins=40)
    with atomic_file(ENERGY_HISTOGRAM) as temporary:
        columns = np.column_stack([(edges[:-1] + edges[1:]) / 2, counts])
        np.savetxt(temporary, columns, ("%.4f", "%d"), ",", header="energy,images", comments="")
    metrics = {
        "low_threshold": scored.groups.low_threshold,
        "high_threshold": scored.groups.high_threshold,
        "teacher_train_top1": scored.train_top1,
        "teacher_test_top1": scored.test_top1,
    }
    by_group = {f"teacher_train_top1_{name}_energy": value for name, value in scored.train_group_top1.items()}
    write_json(ENERGY_METRICS, metrics | by_group)
    print(f"energy of {len(energy):,} training images: {energy.min():.2f} (most confident) to {energy.max():.2f}")


if __name__ == "__main__":
    run_together(score_energy, "stages.score_energy")
