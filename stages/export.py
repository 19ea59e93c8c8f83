"""Stage export: the student as ONNX, OpenVINO IR and torch files, each compared with the torch student."""

from __future__ import annotations

import json
from typing import Any

import torch
from tqdm import tqdm

from pipeline.config import Params
from pipeline.data.loader import Images, open_images
from pipeline.data.store import preprocessing, read_card
from pipeline.export import GRAPH_BYTES, export_all, plan, select, write_record
from pipeline.store.atomic import atomic_folder
from pipeline.store.paths import DATA, ENERGY, EXPORT, EXPORT_MANIFEST, STUDENT, TEACHER
from pipeline.store.space import require_space
from pipeline.store.tables import check_lineage, check_scored, read_energy, sha256_file, write_json
from pipeline.training.weights import read_network, state_bytes
from stages.common import run

CPU = torch.device("cpu")


def export(params: Params) -> None:
    settings = params.export
    data = read_card(DATA)
    student, student_card = read_network(STUDENT)
    teacher, teacher_card = read_network(TEACHER)
    scores, energy_lineage = read_energy(ENERGY)
    lineage = {"data": data["fingerprint"], "teacher": teacher_card["weights_sha256"]}
    check_lineage(TEACHER, teacher_card["lineage"], {"data": data["fingerprint"]})
    check_lineage(ENERGY, energy_lineage, {"split": "train"} | lineage)
    check_scored(ENERGY, scores, data["counts"]["train"])
    check_lineage(STUDENT, student_card["lineage"], lineage | {"energy": sha256_file(ENERGY)})
    lineage |= {"energy": sha256_file(ENERGY), "student": student_card["weights_sha256"]}

    calibration = settings.calibration
    count = min(calibration.images, len(scores["label"]))
    chosen = select(scores["label"], scores["energy"], count, calibration.selection, calibration.seed)
    validation = open_images(DATA, "val", CPU)
    files = plan(settings, teacher=True)
    sizes = {"student": state_bytes(student), "teacher": state_bytes(teacher)}
    needed = sum(sizes[file.role] + GRAPH_BYTES for file in files)
    require_space(EXPORT, needed, "the exported files", output=needed)
    with atomic_folder(EXPORT) as folder, tqdm(total=len(files), desc="export", unit="file", dynamic_ncols=True) as bar:

        def on_progress(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update(name != files[0].name)

        exported = export_all(
            student,
            teacher,
            params=settings,
            image_size=data["image_size"],
            energy_temperature=energy_lineage["temperature"],
            calibration_images=_images(open_images(DATA, "train", CPU), torch.from_numpy(chosen)),
            parity_images=_images(validation, torch.arange(min(settings.parity.images, len(validation)))),
            metadata=_metadata(data, student_card, lineage, energy_lineage["temperature"]),
            out=folder,
            on_progress=on_progress,
        )
        bar.update()
        write_record(
            folder / "calibration.json",
            chosen,
            selection=calibration.selection,
            seed=calibration.seed,
            int8=settings.int8,
            lineage={key: lineage[key] for key in ("data", "energy")},
        )
        write_json(
            folder / EXPORT_MANIFEST.name,
            {
                "schema": 1,
                "lineage": lineage,
                "opset": settings.opset,
                "files": [file.entry() for file in exported],
            },
        )
    for file in exported:
        print(
            f"{file.name:20} {file.size_bytes / 1e3:8.1f} kB  max |difference| {file.parity.max_abs:.2e}  "
            f"same top-1 {file.parity.top1_agreement:.2%}"
        )


def _images(images: Images, index: torch.Tensor) -> Any:
    return images.centre(index).contiguous().numpy()


def _metadata(
    data: dict[str, Any], student: dict[str, Any], lineage: dict[str, str], temperature: float
) -> dict[str, str]:
    """What a device needs to know about the file, and where it came from."""
    return {
        "energy_temperature": json.dumps(temperature),
        "parameters": json.dumps({key: student[key] for key in ("network", "seed", "distill", "heda")}),
        "class_names": json.dumps(data["class_names"]),
        "preprocessing": json.dumps(preprocessing(data)),
        "lineage": json.dumps(lineage),
        "data": data["source"],
        "data_licence": data["licence"],
    }


if __name__ == "__main__":
    run(export)
