"""What files of other people may hold, and must not do. `make fuzz` looks for more of the kind."""

from __future__ import annotations

import ast
import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import pipeline
from bench.fuzz.readers.graph import classifier
from pipeline.config import BudgetParams, read_yaml
from pipeline.data.store import read_card, read_split
from pipeline.device import errors
from pipeline.device.benchmark.plan import Plan, Variant
from pipeline.device.errors import PlanError
from pipeline.device.service.bundle import BundleError, open_bundle
from pipeline.device.service.files import MARK, told
from pipeline.errors import CheckpointError, DataError, ParamsError, brief
from pipeline.evaluation.candidates import candidates
from pipeline.report.device_result import Benchmark
from pipeline.report.evaluation_file import Evaluation
from pipeline.report.inputs import read_curves, read_measured
from pipeline.runtimes import ModelFileError, load
from pipeline.store.paths import STUDENT_CURVES
from pipeline.store.tables import LINEAGE_KEY, check_members, check_scored, read_energy, read_json
from pipeline.targets import read_index
from pipeline.training.weights import build_network, load_foreign, read_network, state_hash, write_network
from tests.conftest import CARD as CARD_OF_STUDENT
from tests.conftest import write_manifest
from tests.report.conftest import benchmark, evaluation

CARD = {
    "name": "digits",
    "class_names": ["zero", "one"],
    "image_size": 8,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "counts": {"train": 2, "val": 2, "test": 2},
    "train_class_counts": [1, 1],
    "source": "drawn",
    "licence": "CC0",
    "fingerprint": "0" * 64,
}


@pytest.mark.parametrize("shorten", [brief, errors.brief])
def test_other_peoples_text_is_a_short_part_of_one_printable_line(shorten: Callable[..., str]) -> None:
    assert shorten("a\r\nb\t c") == "a b c"
    assert shorten("\x1b[2J\u202e\ufffe") == "\\x1b[2J\\u202e\\ufffe"
    assert shorten("x" * 1000) == "x" * 200 + "..."
    assert len(shorten("\x00" * 1000)) < 210


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 5000, "nested too deeply"),
        ("a: 9999-99-99", "not readable as YAML"),
        (f"a: {'9' * 5000}", "not readable as YAML"),
        ("a: !!python/object/apply:os.system [true]", "not readable as YAML"),
        ("a: " + "x" * (1 << 18), "more than 262,144"),
    ],
)
def test_yaml_that_is_none_or_runs_code_ends_in_one_sentence(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ParamsError, match=words) as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)


def test_anchors_that_multiply_are_not_written_out_in_a_message(tmp_path: Path) -> None:
    from pipeline.config import load_params

    laughs = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
    path = tmp_path / "params.yaml"
    path.write_text(f"a0: &a0 [lol]\n{laughs}")
    with pytest.raises(ParamsError) as caught:
        load_params(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[" * 60 + "]" * 60, "nested too deeply"),
        ("[NaN]", "NaN is not a number"),
        ("[1e999]", "1e999 is too large"),
        ("[" + "9" * 5000 + "]", "integer string"),
        ("[36893488147419103232]", "more than 64 bits"),
        (r'["\ud800"]', "surrogates not allowed"),
    ],
)
def test_json_that_would_fail_later_is_refused_where_it_is_read(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=words):
        read_json(tmp_path / "a.json")


def energy_table(path: Path, lineage: bytes | None = None, **columns: Any) -> Path:
    count = 4
    table = {
        "index": pa.array(range(count), pa.int64()),
        "label": pa.array([0] * count, pa.int64()),
        "energy": pa.array([-1.0] * count, pa.float32()),
        "confidence": pa.array([0.5] * count, pa.float32()),
        "correct": pa.array([True] * count),
        "group": pa.array([1] * count, pa.int8()),
    }
    facts = json.dumps(dict.fromkeys(("temperature", "low_threshold", "high_threshold"), 1.0)).encode()
    pq.write_table(pa.table(table | columns).replace_schema_metadata({LINEAGE_KEY: lineage or facts}), path)
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lineage": b"{"}, "lineage of .* is not readable as JSON"),
        ({"lineage": b"[]"}, "is list, not a mapping"),
        ({"lineage": b"{}"}, "has no number temperature"),
        ({"lineage": b'{"temperature": 0, "low_threshold": 1, "high_threshold": 1}'}, "no positive temperature"),
        ({"group": pa.array([3] * 4, pa.int8())}, "outside of 0 to 2"),
        ({"index": pa.array([-1] * 4, pa.int64())}, "values of index outside"),
        ({"energy": pa.array([float("nan")] * 4, pa.float32())}, "not finite"),
        ({"energy": pa.array(["a"] * 4)}, "energy as object"),
    ],
)
def test_an_energy_table_of_other_values_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    read_energy(energy_table(tmp_path / "whole.parquet"))
    with pytest.raises(DataError, match=words):
        read_energy(energy_table(tmp_path / "energy.parquet", **changes))


@pytest.mark.parametrize(
    ("key", "value"),
    [("class_names", []), ("image_size", "8"), ("std", [0, 0, 0]), ("mean", [0.5]), ("counts", None), ("name", 5)],
)
def test_a_card_of_other_values_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(json.dumps(CARD | {key: value}))
    with pytest.raises(DataError, match=f"is not what it should be .{key}"):
        read_card(tmp_path)


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (np.zeros((2, 9, 9, 3), np.uint8), np.zeros(2, np.int64), "no images of 8 x 8 pixels"),
        (np.zeros((2, 8, 8, 3), np.float32), np.zeros(2, np.int64), "no images of 8 x 8 pixels"),
        (np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 1), np.int64), "no labels"),
        (np.zeros((2, 8, 8, 3), np.uint8), np.zeros(2, np.complex64), "no labels"),
        (np.zeros((2, 8, 8, 3), np.uint8), np.zeros(2, object), "no usable train split"),
    ],
)
def test_arrays_that_are_no_pixels_and_labels_are_refused(images: Any, labels: Any, words: str, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(json.dumps(CARD))
    np.save(tmp_path / "train_images.npy", images)
    np.save(tmp_path / "train_labels.npy", labels, allow_pickle=True)
    with pytest.raises(DataError, match=words):
        read_split(tmp_path, "train")


@pytest.mark.parametrize(
    "value",
    [
        torch.full((2, 2), float("nan")),
        torch.zeros(2, 2, device="meta"),
        torch.zeros(2, 2).to_sparse(),
        torch.zeros(2, 2, dtype=torch.complex64),
    ],
)
def test_weights_that_are_not_plain_finite_numbers_leave_the_network_alone(value: Any, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = state_hash(network)
    # the damaged tensor comes last: torch would have loaded the others by then
    state = {name: torch.ones_like(tensor) for name, tensor in network.state_dict().items()}
    state["1.weight"] = value
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"1\.weight|not a safetensors file"):
        load_foreign(network, tmp_path / "weights.pth")
    assert state_hash(network) == before


@pytest.mark.parametrize("change", [{"rounds": "5"}, {"rounds": True}, {"seed": 10**40}, {"max_seconds": float("nan")}])
def test_a_plan_of_other_types_is_refused_before_it_is_used(change: dict[str, Any]) -> None:
    values = json.loads(Plan((Variant("a", "onnxruntime", "a.onnx", "fp32"),), "x.npy").to_json())
    with pytest.raises(PlanError):
        Plan.from_json(json.dumps(values | change))
    with pytest.raises(PlanError, match="path of the plan"):
        Plan.from_json(json.dumps(values | {"variants": [values["variants"][0] | {"path": ["a"]}]}))


def archive(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """A bundle that holds ``members`` and a manifest that agrees with them."""
    plan = json.loads(Plan((Variant("a", "onnxruntime", "bundle/a.onnx", "fp32"),), "bundle/inputs.npy").to_json())
    whole = {"bundle/a.onnx": b"", "bundle/inputs.npy": b"", **members}
    files = {name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for name, data in whole.items()}
    with zipfile.ZipFile(path, "w", compression) as target:
        for name, data in whole.items():
            target.writestr(name, data)
        target.writestr("bundle/manifest.json", json.dumps({"schema": 1, "plan": plan, "card": {}, "files": files}))
    return path


def test_a_bundle_that_unpacks_to_more_than_it_is_or_names_a_file_as_a_folder_is_refused(tmp_path: Path) -> None:
    assert open_bundle(archive(tmp_path / "whole.pyz", {})).files
    with pytest.raises(BundleError, match="compressed or encrypted"):
        open_bundle(archive(tmp_path / "a.pyz", {"bundle/zeros": b"\x00" * (1 << 20)}, zipfile.ZIP_DEFLATED))
    with pytest.raises(BundleError, match="below a name that is a file's own"):
        open_bundle(archive(tmp_path / "b.pyz", {"bundle/inputs.npy/x": b""}))
    with pytest.raises(BundleError, match="may lead out of its folder"):
        open_bundle(archive(tmp_path / "c.pyz", {"bundle/" + "x" * 300: b""}))


def test_a_damaged_table_of_contents_is_no_error_of_the_system(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pyz", {})
    content = path.read_bytes()
    at = content.index(b"PK\x05\x06")
    # where the table of contents begins, far behind the end
    path.write_bytes(content[: at + 16] + b"\xff\xff\xff\x7f" + content[at + 20 :])
    with pytest.raises(BundleError, match="not a whole bundle"):
        open_bundle(path)


def test_what_a_device_tells_cannot_move_the_cursor_of_who_listens() -> None:
    line = MARK + json.dumps({"progress": {"label": "\x1b[2Jowned", "done": 1}})
    assert told(line) == {"progress": {"label": "\\x1b[2Jowned", "done": 1}}
    assert told(MARK + "[" * 100_000) is None


@pytest.mark.parametrize("path", [b"\xff.png", b"a\x00b.png", None])
def test_a_manifest_of_images_with_paths_that_are_none_is_refused(path: bytes | None, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(json.dumps(CARD | {"storage": "files"}))
    np.save(tmp_path / "train_labels.npy", np.zeros(1, np.int64))
    # as text without a check that it is UTF-8
    paths = pa.array([path], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"path": paths}), tmp_path / "train_files.parquet")
    with pytest.raises(DataError, match="does not give every image a path"):
        read_split(tmp_path, "train")


@pytest.mark.parametrize("name", ["../student.pt2", "/student.pt2", "a/b.pt2", "", None])
def test_a_manifest_cannot_name_a_file_outside_of_its_folder(name: Any, tmp_path: Path) -> None:
    manifest = tmp_path / "export/manifest.json"
    manifest.parent.mkdir()
    for folder in (tmp_path, manifest.parent):
        (folder / "student.pt2").write_bytes(b"code")
    write_manifest(manifest, "student.pt2", name=name)
    with pytest.raises(DataError, match=r"files\.0\.name.* (no file of its folder|valid string)"):
        candidates(manifest, ["torch"], "params.yaml: evaluate.runtimes")


def test_an_onnx_file_without_an_output_or_with_names_that_are_no_text_is_refused_in_one_line(tmp_path: Path) -> None:
    model = classifier("fp32")
    model.graph.node[0].op_type = "\x1b[2J"
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(ModelFileError, match=r"\\x1b\[2J") as caught:
        load("onnxruntime", tmp_path / "odd.onnx", precision="fp32")
    assert str(caught.value).isprintable()
    model = classifier("fp32")
    del model.graph.output[:]
    onnx.save(model, tmp_path / "none.onnx")
    with pytest.raises(ModelFileError, match="1 inputs and 0 outputs"):
        load("onnxruntime", tmp_path / "none.onnx", precision="fp32")


@pytest.mark.parametrize("content", [b"step\tval_top1\n" + b"\xff" * 2000, b'"' + b"x" * 200_000, b"step\n0\n"])
def test_a_curve_that_is_none_is_refused_in_a_short_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / STUDENT_CURVES / "plots/metrics/val_top1.tsv"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(DataError, match="is not a DVCLive curve") as caught:
        read_curves(tmp_path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights_sha256": None}, "weights_sha256 is None"),
        ({"lineage": {}}, "lineage.data is missing"),
        ({"lineage": CARD_OF_STUDENT["lineage"] | {"energy": 5}}, "lineage.energy is 5"),
        ({"distill": []}, r"distill is \[\]"),
        ({"num_classes": 10**9}, "num_classes is not the 5 of class_names"),
        ({"network": "\x1b[2J"}, "characters that cannot be shown"),
    ],
)
def test_a_card_of_a_network_of_other_values_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    write_network(tmp_path / "student", build_network("resnet8", 5, "distill.network"), CARD_OF_STUDENT)
    path = tmp_path / "student/card.json"
    path.write_text(json.dumps(read_json(path) | change))
    with pytest.raises(DataError, match=words):
        read_network(tmp_path / "student")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch": "8"}, r"files\.0\.batch is '8'"),
        ({"precision": "fp8"}, r"files\.0\.precision is 'fp8'"),
        ({"sha256": 5}, r"files\.0\.sha256 is 5"),
        ({"parity": {}}, r"files\.0\.parity\.runtime is missing"),
    ],
)
def test_a_manifest_of_other_values_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"onnx")
    write_manifest(tmp_path / "export.json", "a.onnx", **change)
    with pytest.raises(DataError, match=words):
        candidates(tmp_path / "export.json", ["onnxruntime"], "params.yaml: evaluate.runtimes")
    (tmp_path / "export.json").write_text('{"lineage": {}, "opset": 18, "files": []}')
    with pytest.raises(DataError, match=r"lineage\.data is missing"):
        candidates(tmp_path / "export.json", ["onnxruntime"], "params.yaml: evaluate.runtimes")


def _without(rows: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != key} for row in rows]


@pytest.mark.parametrize(
    ("schema", "whole", "change", "words"),
    [
        (Evaluation, evaluation(), lambda d: {"rows": _without(d["rows"], "routing")}, r"rows\.0\.routing is missing"),
        (Evaluation, evaluation(), lambda d: {"test_images": 0}, "test_images is 0"),
        (Evaluation, evaluation(), lambda d: {"shot_classes": {"many": 1}}, "shot_classes.medium is missing"),
        (Evaluation, evaluation(), lambda d: {"schema": 2}, "not a result that this version reads"),
        (Benchmark, benchmark(), lambda d: {"rows": _without(d["rows"], "rounds")}, r"rows\.0\.rounds is missing"),
        (Benchmark, benchmark(), lambda d: {"device": 5}, "device is 5"),
        (Benchmark, benchmark(), lambda d: {"machine": []}, r"machine is \[\]"),
    ],
)
def test_a_measurement_of_other_values_is_refused(
    schema: Any, whole: dict[str, Any], change: Callable[..., dict[str, Any]], words: str, tmp_path: Path
) -> None:
    (tmp_path / "a.json").write_text(json.dumps(whole))
    assert read_measured(tmp_path / "a.json", schema) == whole
    (tmp_path / "a.json").write_text(json.dumps(whole | change(whole)))
    with pytest.raises(DataError, match=words):
        read_measured(tmp_path / "a.json", schema)


@pytest.mark.parametrize("sha256", [5, None, "0" * 63, ["0" * 64]])
def test_an_index_with_a_hash_that_is_none_is_refused(sha256: Any, tmp_path: Path) -> None:
    budget = dict.fromkeys(BudgetParams.model_fields)
    (tmp_path / "results.json").write_text(json.dumps({"board": {"result_sha256": sha256, "budget": budget}}))
    with pytest.raises(DataError, match="damaged entry 'board'"):
        read_index(tmp_path / "results.json")


def test_tables_that_lack_images_or_have_others_are_refused() -> None:
    check_scored(Path("a"), {"index": np.arange(4)}, 4)
    with pytest.raises(DataError, match="a does not list the images 0 to 3"):
        check_scored(Path("a"), {"index": np.arange(3)}, 4)
    check_members(Path("a"), {"index": np.array([3])}, 4)
    with pytest.raises(DataError, match="not among the 4"):
        check_members(Path("a"), {"index": np.array([4])}, 4)


def test_what_unpickles_is_told_not_to_run_code_and_programs_are_loaded_in_one_place() -> None:
    root = Path(pipeline.__file__).parents[1]
    programs = []
    for path in [
        path for folder in ("pipeline", "stages", "models", "bench") for path in (root / folder).rglob("*.py")
    ]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords} if isinstance(node, ast.Call) else {}
            assert not called.startswith(("pickle.", "joblib.", "shelve.")), path
            assert keywords.get("shell", "False") == "False", path
            if called == "torch.load":
                assert keywords["weights_only"] == "True", path
            if called == "np.load":
                assert keywords.get("allow_pickle", "False") == "False", path
            if called == "torch.export.load":
                programs.append(path.relative_to(root).as_posix())
    assert programs == ["pipeline/runtimes/torch_runtime.py"]
