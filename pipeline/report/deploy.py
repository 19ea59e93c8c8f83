"""The folder to deploy: the recommended file, all that is needed to use it, and a program that does."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from pipeline.data.image_files import FORMATS, MAX_PIXELS
from pipeline.data.store import preprocessing
from pipeline.errors import DataError, LineageError
from pipeline.report import formatting
from pipeline.report.formatting import runtime
from pipeline.runtimes import ENERGY, INPUT, LOGITS
from pipeline.runtimes.onnxruntime_runtime import SESSION_ENTRIES
from pipeline.runtimes.openvino_runtime import precision_hint
from pipeline.store.atomic import atomic_folder
from pipeline.store.tables import model_files, sha256_file, sha256_model, write_json

# a line break would move all later labels, an escape sequence would reach the terminal of whoever runs predict.py
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def write_deploy(folder: Path, row: Mapping[str, Any], export_folder: Path, data: Mapping[str, Any]) -> None:
    """Write the recommended file with labels, preprocessing, checksums and ``predict.py`` into ``folder``, as a whole.

    Args:
        row: recommended row of the summary.
        export_folder: where the export stage wrote its files.
        data: card of the packed store.

    Raises:
        LineageError: the exported file is not the one that was measured.
        DataError: a file is missing, or a class name contains a control character.
    """
    _check_hash(export_folder / row["name"], row)
    labels = _labels(data["class_names"])
    package = "openvino" if row["format"] == "openvino" else "onnxruntime"
    with atomic_folder(folder) as temporary:
        for source in model_files(export_folder / row["name"]):
            shutil.copyfile(source, temporary / source.name)
        (temporary / "labels.txt").write_text(labels, encoding="utf-8", newline="\n")
        names = {"input": INPUT, "output": LOGITS, "energy": ENERGY}
        spec = preprocessing(data) | names | {"energy_threshold": row["energy_threshold"]}
        write_json(temporary / "preprocessing.json", spec)
        (temporary / "predict.py").write_text(_program(row, package), encoding="utf-8", newline="\n")
        (temporary / "README.md").write_text(_readme(row, package, data), encoding="utf-8", newline="\n")
        sums = [f"{sha256_file(path)}  {path.name}\n" for path in sorted(temporary.iterdir())]
        (temporary / "SHA256SUMS").write_text("".join(sums), encoding="utf-8", newline="\n")


def _check_hash(path: Path, row: Mapping[str, Any]) -> None:
    found = sha256_model(path)
    if found != row["sha256"]:
        raise LineageError(
            f"{path} has hash {found[:12]}, but the file that was measured has {row['sha256'][:12]}; run `dvc repro`"
        )


def _labels(class_names: Sequence[str]) -> str:
    for name in class_names:
        if _CONTROL.search(name):
            raise DataError(
                f"class name {name!r} contains a line break or another control character, which labels.txt "
                "cannot hold; rename the class"
            )
    return "".join(f"{name}\n" for name in class_names)


def _program(row: Mapping[str, Any], package: str) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.report", "."),
        # Python, not HTML: the name of the file goes in as a JSON string, the rest are keywords of ours
        autoescape=False,  # noqa: S701
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    hint = precision_hint(row["precision"], has_fp16=row["precision_executed"] == "fp16")
    template = environment.get_template("predict.py.txt")
    entries = SESSION_ENTRIES.get(row["precision"], {})
    return template.render(
        batch=row["batch"],
        name=row["name"],
        package=package,
        hint=hint,
        session_options=entries,
        input=INPUT,
        output=LOGITS,
        energy=ENERGY,
        formats=FORMATS,
        most_pixels=MAX_PIXELS,
    )


def _readme(row: Mapping[str, Any], package: str, data: Mapping[str, Any]) -> str:
    accuracy = formatting.percent(row["top1"], 2)
    latency = "not measured"
    if row["latency_p50_ms"] is not None:
        latency = f"{formatting.milliseconds(row['latency_p50_ms'])} ms"
    lines = [
        f"# {row['name']}",
        "",
        f"Classifies images into the {len(data['class_names'])} classes of labels.txt (trained on {data['name']}).",
        "",
        "    sha256sum -c SHA256SUMS",
        f"    pip install numpy pillow {package}",
        "    python predict.py image.png",
        "",
        f"Measured with {runtime(row['runtime'])} on {row['device']}: top-1 {accuracy} % on the test split, median "
        f"latency {latency}, {formatting.size(row['size_bytes'])}; precision executed: {row['precision_executed']}.",
        "preprocessing.json says how an image becomes the network's input; predict.py does just that.",
    ]
    if row["energy_threshold"] is not None:
        threshold = row["energy_threshold"]
        lines += [
            "",
            f"    python predict.py --reject-above {threshold:.6g} image.png",
            "",
            f"rejects images whose energy is above {threshold:.6g}, for a larger network: on the test split that kept "
            f"{formatting.percent(row['on_device_coverage'], 1)} % of the images"
            + (
                "."
                if row["on_device_top1"] is None
                else f", of which {formatting.percent(row['on_device_top1'], 2)} % were right."
            ),
            "--reject-below goes by the largest probability instead; the report compares the two.",
        ]
    if row["runtime"] == "tensorrt":
        lines.append(
            "predict.py runs the same file in ONNX Runtime; for the speed above, build a TensorRT engine of it on the "
            "device."
        )
    return "\n".join(lines) + "\n"
