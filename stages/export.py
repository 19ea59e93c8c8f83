"""Stage export: a network as ONNX, OpenVINO IR and torch files, each compared with the torch network."""

from pipeline.config import Params
from pipeline.export.files import make_export
from pipeline.lineage import Run
from stages.common import network_argument, run_stage
from stages.progress import counted


def export(params: Params, name: str) -> None:
    with counted(f"export {name}", "file") as on_progress:
        manifest = make_export(Run().network(name), params.export, on_progress)
    for file in manifest.files:
        print(
            f"{file.name:20} {file.size_bytes / 1e3:8.1f} kB  max |difference| {file.parity.max_abs:.2e}  "
            f"top-1 {100 * file.parity.delta_top1:+.2f}  same {file.parity.top1_agreement:.2%}"
        )


if __name__ == "__main__":
    run_stage(export, network=network_argument("stages.export", __doc__))
