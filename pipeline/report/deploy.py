"""Write the deployment folder: the recommended file or cascade, labels, preprocessing, and a program that runs it."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from pipeline import runtimes
from pipeline.config import TEACHER
from pipeline.data import decoding
from pipeline.data.store import preprocessing
from pipeline.errors import DataError, LineageError
from pipeline.lineage import NetworkRun, Run
from pipeline.portable.files import atomic_folder, sha256_file
from pipeline.report import formatting
from pipeline.report.cascades import Cascade
from pipeline.report.rows import Row
from pipeline.runtimes.openvino_runtime import precision_hint
from pipeline.store.json_files import write_json
from pipeline.store.paths import model_files
from pipeline.store.tables import sha256_model

# a line break would shift all later labels, and predict.py would print an escape sequence to the terminal
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def write_deploy(folder: Path, chosen: Row | Cascade, run: Run) -> None:
    """Write the chosen file or files, labels, preprocessing, checksums and ``predict.py`` into ``folder``, atomically.

    Args:
        chosen: the recommended row or cascade.
        run: for the exported files, and for the cards of the data and the networks.

    Raises:
        LineageError: an exported file is not the measured file.
        DataError: a file is missing, or a class name contains a control character.
    """
    rows = [chosen] if isinstance(chosen, Row) else [chosen.small, chosen.large]
    networks = [run.network(row.student or TEACHER) for row in rows]
    models = [_measured_file(row, network) for row, network in zip(rows, networks, strict=True)]
    data = run.data
    for name in data.class_names:
        if _CONTROL.search(name):
            raise DataError(
                f"class name {name!r} contains a line break or another control character, which labels.txt cannot "
                "hold; rename the class"
            )
    names = {"input": runtimes.INPUT, "output": runtimes.LOGITS, "energy": runtimes.ENERGY}
    spec = preprocessing(networks[0].card) | names
    if isinstance(chosen, Row):
        cascade, spec["energy_threshold"] = None, chosen.energy_threshold
    else:
        larger = networks[1].card.model_dump(include={"mean", "std"})
        cascade, spec["cascade"] = chosen, {"score": chosen.score, "threshold": chosen.threshold, "larger": larger}
    values = {"rows": rows, "row": rows[0], "cascade": cascade, "data": data, **names}
    texts = {
        "labels.txt": "".join(f"{name}\n" for name in data.class_names),
        **{name: _rendered(f"{name}.txt", values) for name in ("predict.py", "README.md")},
    }
    with atomic_folder(folder) as temporary:
        for source in (*(part for model in models for part in model_files(model)), Path(decoding.__file__)):
            shutil.copyfile(source, temporary / source.name)
        write_json(temporary / "preprocessing.json", spec)
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8", newline="\n")
        sums = [f"{sha256_file(path)}  {path.name}\n" for path in sorted(temporary.iterdir())]
        (temporary / "SHA256SUMS").write_text("".join(sums), encoding="utf-8", newline="\n")


def _measured_file(row: Row, network: NetworkRun) -> Path:
    """The exported file of a row; LineageError if it is not the one that was measured."""
    model = network.places.export / row.name
    if (model_hash := sha256_model(model)) != row.sha256:
        raise LineageError(
            f"{model} has hash {model_hash[:12]}, but the measured file has {row.sha256[:12]}; run `dvc repro`"
        )
    return model


def _hint(row: Row) -> str:
    """OpenVINO's precision hint for the file of a row."""
    return precision_hint(row.precision, has_fp16=row.precision_executed == "fp16")


def _rendered(template: str, values: Mapping[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.report", "."),
        # not HTML: the templates are Python and Markdown; the file name in Python is a JSON string
        autoescape=False,  # noqa: S701
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = ("interval", "milliseconds", "percent", "points", "runtime", "size")
    environment.filters |= {name: getattr(formatting, name) for name in filters} | {"hint": _hint}
    package = "openvino" if values["row"].format == "openvino" else "onnxruntime"
    return environment.get_template(template).render(package=package, **values)
