"""Stage prepare: images of the data source -> packed uint8 store with stratified splits and a card."""

from pathlib import Path

from pipeline.config import Params
from pipeline.data.store import make_store
from pipeline.store.documents import ImageFormat
from pipeline.store.paths import BAD_IMAGES, DATA
from stages.common import run_stage
from stages.missing_images import missing_images
from stages.progress import counted


def prepare(params: Params) -> None:
    with missing_images(Path(params.data.root)), counted("prepare", "image") as on_progress:
        card = make_store(DATA, params.data, lambda done, total: on_progress(done, total, ""), BAD_IMAGES)
    counts = ", ".join(f"{name} {count:,}" for name, count in card.counts)
    print(f"{card.name}: {len(card.class_names)} classes; {counts} images of {_size(card.image)}")


def _size(image: ImageFormat) -> str:
    return f"{image.height} x {image.width} pixels{', grey' if image.channels == 1 else ''}"


if __name__ == "__main__":
    run_stage(prepare)
