"""Write the deployment folder: the recommended file, labels, preprocessing, and a program that runs the file."""

import re
import shutil
from pathlib import Path
from typing import Any

import jinja2

from pipeline import runtimes
from pipeline.data import decoding
from pipeline.data.store import preprocessing
from pipeline.errors import DataError, LineageError
from pipeline.lineage import Run
from pipeline.portable.files import atomic_folder, sha256_file
from pipeline.report import formatting
from pipeline.report.rows import Row
from pipeline.runtimes.openvino_runtime import precision_hint
from pipeline.store.json_files import write_json
from pipeline.store.paths import model_files
from pipeline.store.tables import sha256_model

# a line break would shift all later labels, and predict.py would print an escape sequence to the terminal
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def write_deploy(folder: Path, row: Row, export_folder: Path, run: Run) -> None:
    """Write the recommended file, labels, preprocessing, checksums and ``predict.py`` into ``folder``, atomically.

    Args:
        row: the recommended row.
        export_folder: folder of the exported files.
        run: for the cards of data and student.

    Raises:
        LineageError: the exported file is not the measured file.
        DataError: a file is missing, or a class name contains a control character.
    """
    model = export_folder / row.name
    if (model_hash := sha256_model(model)) != row.sha256:
        raise LineageError(
            f"{model} has hash {model_hash[:12]}, but the measured file has {row.sha256[:12]}; run `dvc repro`"
        )
    data = run.data
    for name in data.class_names:
        if _CONTROL.search(name):
            raise DataError(
                f"class name {name!r} contains a line break or another control character, which labels.txt cannot "
                "hold; rename the class"
            )
    names = {"input": runtimes.INPUT, "output": runtimes.LOGITS, "energy": runtimes.ENERGY}
    texts = {
        "labels.txt": "".join(f"{name}\n" for name in data.class_names),
        **{name: _rendered(f"{name}.txt", row=row, data=data, **names) for name in ("predict.py", "README.md")},
    }
    with atomic_folder(folder) as temporary:
        for source in (*model_files(model), Path(decoding.__file__)):
            shutil.copyfile(source, temporary / source.name)
        spec = preprocessing(run.student) | names | {"energy_threshold": row.energy_threshold}
        write_json(temporary / "preprocessing.json", spec)
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8", newline="\n")
        sums = [f"{sha256_file(path)}  {path.name}\n" for path in sorted(temporary.iterdir())]
        (temporary / "SHA256SUMS").write_text("".join(sums), encoding="utf-8", newline="\n")


def _rendered(template: str, *, row: Row, **values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.report", "."),
        # not HTML: the templates are Python and Markdown; the file name in Python is a JSON string
        autoescape=False,  # noqa: S701
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {name: getattr(formatting, name) for name in ("milliseconds", "percent", "runtime", "size")}
    return environment.get_template(template).render(
        row=row,
        package="openvino" if row.format == "openvino" else "onnxruntime",
        hint=precision_hint(row.precision, has_fp16=row.precision_executed == "fp16"),
        **values,
    )
