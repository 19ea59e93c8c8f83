"""Stage prepare: images of the data source -> packed uint8 store with stratified splits and a card."""

from __future__ import annotations

from pipeline.config import Params
from pipeline.data.sources import open_source
from pipeline.data.splits import split
from pipeline.data.store import write_store
from pipeline.store.paths import BAD_IMAGES, DATA
from stages.common import progress, run


def prepare(params: Params) -> None:
    source = open_source(params.data)
    members = split(source, params.data)
    with progress("prepare", sum(len(indices) for _, indices in members.values()), "image") as advance:
        card = write_store(DATA, source, members, params.data, advance, BAD_IMAGES)
    counts = ", ".join(f"{name} {count:,}" for name, count in card["counts"].items())
    print(f"{card['name']}: {len(card['class_names'])} classes; {counts} images of {card['image_size']} pixels")


if __name__ == "__main__":
    run(prepare)
