"""Stage export: the student as ONNX, OpenVINO IR and torch files, each compared with the torch student."""

from pipeline.config import Params
from pipeline.export.files import make_export
from pipeline.lineage import Run
from stages.common import run_stage
from stages.progress import counted


def export(params: Params) -> None:
    with counted("export", "file") as on_progress:
        manifest = make_export(Run(), params.export, on_progress)
    for file in manifest.files:
        print(
            f"{file.name:20} {file.size_bytes / 1e3:8.1f} kB  max |difference| {file.parity.max_abs:.2e}  "
            f"top-1 {100 * file.parity.delta_top1:+.2f}  same {file.parity.top1_agreement:.2%}"
        )


if __name__ == "__main__":
    run_stage(export)
