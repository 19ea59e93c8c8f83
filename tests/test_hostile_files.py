"""Files of other people with hostile content do no harm. `make fuzz` looks for more of the kind."""

from __future__ import annotations

import ast
import hashlib
import json
import re
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
from onnx import TensorProto, helper
from torch import nn

import pipeline
from pipeline.config import TEACHER, BudgetParams, load_params, read_yaml
from pipeline.data.store import read_card, read_split
from pipeline.device.benchmark.plan import Plan, Variant
from pipeline.device.errors import PlanError
from pipeline.device.service import bundle
from pipeline.device.service.bundle import BundleError, open_bundle
from pipeline.device.service.run_folder import LINE_START, read_line
from pipeline.errors import CheckpointError, DataError, ParamsError
from pipeline.lineage import Places, Run
from pipeline.portable.documents import Result
from pipeline.portable.text import brief
from pipeline.report.inputs import read_curves
from pipeline.runtimes import ModelFileError, load
from pipeline.store.documents import (
    CurvesCard,
    DataCard,
    Evaluation,
    ExportManifest,
    Measurement,
    NetworkCard,
    parse_as,
)
from pipeline.store.json_files import read_json
from pipeline.store.paths import CURVES_CARD
from pipeline.store.tables import EnergyLineage, SubsetLineage, read_table
from pipeline.targets import read_index
from pipeline.training.weights import load_pretrained
from tests.conftest import CARD as CARD_OF_STUDENT
from tests.conftest import PARITY, STUDENT, places_in, state_hash, write_manifest
from tests.report import conftest as reported

Change = Callable[[dict[str, Any]], dict[str, Any]]
CARD = {
    "format": 2,
    "name": "digits",
    "storage": "packed",
    "class_names": ["zero", "one"],
    "image": {"height": 8, "width": 8, "channels": 3, "resize": "squash", "interpolation": "bilinear"},
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "counts": {"train": 2, "val": 2, "test": 2},
    "train_class_counts": [1, 1],
    "source": "drawn",
    "licence": "CC0",
    "fingerprint": "0" * 64,
}


def test_other_peoples_text_is_a_short_part_of_one_printable_line() -> None:
    assert brief("a\r\nb\t c") == "a b c"
    assert brief("\x1b[2J\u202e\ufffe") == "\\x1b[2J\\u202e\\ufffe"
    assert brief("x" * 1000) == "x" * 200 + "..."
    assert len(brief("\x00" * 1000)) < 210


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 2000, "nested too deeply"),
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
    laughs = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
    path = tmp_path / "params.yaml"
    path.write_text(f"a0: &a0 [lol]\n{laughs}")
    with pytest.raises(ParamsError) as caught:
        load_params(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "recursion limit exceeded"),
        ("[" * 250 + "]" * 250, "recursion limit exceeded"),
        ("[NaN]", "expected value"),
        ("[1e999]", "1e999 is too large"),
        ("[" + "9" * 5000 + "]", "number out of range"),
        ("[36893488147419103232]", "more than 64 bits"),
        (r'["\ud800"]', "hex escape"),
    ],
)
def test_json_that_would_fail_later_is_refused_where_it_is_read(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=words):
        read_json(tmp_path / "a.json")


MADE_FROM = {"data": "0" * 64, "teacher": "1" * 64, "split": "train"}
ENERGY_LINEAGE = {"format": 2, **MADE_FROM, "temperature": 1.0, "low_threshold": 1.0, "high_threshold": 1.0}


def table_file(path: Path, lineage: Any, **columns: Any) -> Path:
    """A table with energies of four images, or with other columns in place of some of them."""
    table = {
        "index": pa.array(range(4), pa.int64()),
        "label": pa.array([0] * 4, pa.int64()),
        "energy": pa.array([-1.0] * 4, pa.float32()),
        "max_logit": pa.array([1.0] * 4, pa.float32()),
        "confidence": pa.array([0.5] * 4, pa.float32()),
        "correct": pa.array([True] * 4),
        "group": pa.array([1] * 4, pa.int8()),
    }
    metadata = lineage if isinstance(lineage, bytes) else json.dumps(lineage).encode()
    pq.write_table(pa.table(table | columns).replace_schema_metadata({b"energykd": metadata}), path)
    return path


@pytest.mark.parametrize(
    ("lineage", "words"),
    [
        (b"{", "lineage of .* is not readable as JSON"),
        (b'{"temperature": NaN}', "lineage of .* is not readable as JSON .expected value"),
        (b"[]", "has format None"),
        (b"{}", "has format None"),
        (ENERGY_LINEAGE | {"format": 1}, "has format 1, but this version reads 2"),
        ({"format": 2, **MADE_FROM, "low_threshold": 1.0, "high_threshold": 1.0}, "temperature is missing"),
        (ENERGY_LINEAGE | {"temperature": 0.0}, "temperature is 0.0: input should be greater than 0"),
        (ENERGY_LINEAGE | {"temperature": True}, "temperature is true"),
        (ENERGY_LINEAGE | {"low_threshold": "1"}, "low_threshold is '1'"),
        (ENERGY_LINEAGE | {"teacher": "1" * 63}, "teacher is '1"),
        (ENERGY_LINEAGE | {"split": "val"}, "split is 'val'"),
    ],
)
def test_an_energy_table_with_another_lineage_is_refused(lineage: Any, words: str, tmp_path: Path) -> None:
    read_table(table_file(tmp_path / "whole.parquet", ENERGY_LINEAGE), EnergyLineage)
    with pytest.raises(DataError, match=words):
        read_table(table_file(tmp_path / "energy.parquet", lineage), EnergyLineage)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"group": pa.array([3] * 4, pa.int8())}, "outside of 0 to 2"),
        ({"index": pa.array([-1] * 4, pa.int64())}, "values of index outside"),
        ({"energy": pa.array([float("nan")] * 4, pa.float32())}, "not finite"),
        ({"max_logit": pa.array([float("inf")] * 4, pa.float32())}, "values of max_logit that are not finite"),
        ({"energy": pa.array(["a"] * 4)}, "energy as object"),
    ],
)
def test_an_energy_table_of_other_values_is_refused(columns: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        read_table(table_file(tmp_path / "energy.parquet", ENERGY_LINEAGE, **columns), EnergyLineage)


@pytest.mark.parametrize(
    ("change", "columns", "words"),
    [
        ({"subset": "best"}, {}, "subset is 'best'"),
        ({"energy": None}, {}, "energy is null"),
        ({}, {"index": pa.array([2**41] * 4, pa.int64())}, "values of index outside"),
        ({}, {"label": pa.array([0.5] * 4)}, "label as float64"),
    ],
)
def test_a_subset_of_other_values_is_refused(change: Any, columns: Any, words: str, tmp_path: Path) -> None:
    lineage = {"format": 1, "data": "0" * 64, "energy": "1" * 64, "fraction": 0.4, "subset": "random"}
    read_table(table_file(tmp_path / "whole.parquet", lineage), SubsetLineage)
    with pytest.raises(DataError, match=words):
        read_table(table_file(tmp_path / "subset.parquet", lineage | change, **columns), SubsetLineage)


def test_tables_that_lack_images_or_have_others_are_refused(tmp_path: Path) -> None:
    run = Run(Places(energy=tmp_path / "energy.parquet", subset=tmp_path / "subset.parquet"))
    run.data = DataCard.parsed(CARD | {"fingerprint": "0" * 64, "counts": {"train": 4, "val": 0, "test": 0}}, Path("a"))
    run.network(TEACHER).card = NetworkCard.parsed(WHOLE_CARD | {"weights_sha256": "1" * 64}, Path("a"))
    few = {"index": pa.array([0, 1, 2, 2], pa.int64())}
    table_file(run.places.energy, ENERGY_LINEAGE, **few)
    with pytest.raises(DataError, match="does not list the images 0 to 3"):
        _ = run.energy
    table_file(run.places.energy, ENERGY_LINEAGE)
    assert len(run.energy.columns["index"]) == 4
    lineage = {"format": 1, "data": "0" * 64, "energy": run.energy_sha256, "fraction": 0.4, "subset": "random"}
    table_file(run.places.subset, lineage, index=pa.array([4] * 4, pa.int64()))
    with pytest.raises(DataError, match="not among the 4"):
        _ = run.subset
    table_file(run.places.subset, lineage)
    assert len(run.subset.columns["index"]) == 4


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("class_names", []),
        ("image", 8),
        ("image", CARD["image"] | {"width": 10**9}),
        ("std", [0, 0, 0]),
        ("mean", [0.5]),
        ("counts", None),
        ("counts", {"train": -1, "val": 2, "test": 2}),
        ("name", 5),
        ("storage", "elsewhere"),
        ("surprise", 1),
    ],
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
        load_pretrained(network, tmp_path / "weights.pth")
    assert state_hash(network) == before


@pytest.mark.parametrize("change", [{"rounds": "5"}, {"rounds": True}, {"seed": 10**40}, {"max_seconds": float("nan")}])
def test_a_plan_of_other_types_is_refused_before_it_is_used(change: dict[str, Any]) -> None:
    values = json.loads(Plan((Variant("a", "onnxruntime", "a.onnx", "fp32", "x.npy"),)).to_json())
    with pytest.raises(PlanError):
        Plan.from_json(json.dumps(values | change))
    for name, value in {"path": ["a"], "inputs": None, "expected": 1}.items():
        with pytest.raises(PlanError, match=f"{name} of the plan"):
            Plan.from_json(json.dumps(values | {"variants": [values["variants"][0] | {name: value}]}))


def archive(
    path: Path,
    members: dict[str, bytes],
    compression: int = zipfile.ZIP_STORED,
    of_variant: dict[str, str] | None = None,
) -> Path:
    """A bundle that holds ``members`` and a manifest that agrees with them."""
    paths = {"path": "bundle/a.onnx", "inputs": "bundle/inputs/a.npy"} | (of_variant or {})
    variant = Variant("a", "onnxruntime", precision="fp32", **paths)
    plan = json.loads(Plan((variant,)).to_json())
    whole = {"bundle/a.onnx": b"", "bundle/inputs/a.npy": b"", **members}
    files = {name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for name, data in whole.items()}
    with zipfile.ZipFile(path, "w", compression) as target:
        for name, data in whole.items():
            target.writestr(name, data)
        manifest = {"schema": bundle.SCHEMA, "plan": plan, "card": {}, "files": files}
        target.writestr("bundle/manifest.json", json.dumps(manifest))
    return path


def test_a_bundle_that_unpacks_to_more_than_it_is_or_names_a_file_as_a_folder_is_refused(tmp_path: Path) -> None:
    assert open_bundle(archive(tmp_path / "whole.pyz", {})).files
    with pytest.raises(BundleError, match="compressed or encrypted"):
        open_bundle(archive(tmp_path / "a.pyz", {"bundle/zeros": b"\x00" * (1 << 20)}, zipfile.ZIP_DEFLATED))
    with pytest.raises(BundleError, match="but its folder is a file in the bundle"):
        open_bundle(archive(tmp_path / "b.pyz", {"bundle/inputs/a.npy/x": b""}))
    with pytest.raises(BundleError, match="may lead out of its folder"):
        open_bundle(archive(tmp_path / "c.pyz", {"bundle/" + "x" * 300: b""}))


@pytest.mark.parametrize("field", ["path", "inputs", "expected"])
@pytest.mark.parametrize("outside", ["/etc/hostname", "../a.npy", "bundle/../../a.npy", "a.npy", ""])
def test_a_plan_whose_variant_names_a_file_outside_of_the_bundle_is_refused(
    field: str, outside: str, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=rf"lacks {re.escape(outside)}, which its plan names"):
        open_bundle(archive(tmp_path / "a.pyz", {}, of_variant={field: outside}))


def test_a_damaged_table_of_contents_is_no_error_of_the_system(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pyz", {})
    content = path.read_bytes()
    at = content.index(b"PK\x05\x06")
    # where the table of contents begins, far behind the end
    path.write_bytes(content[: at + 16] + b"\xff\xff\xff\x7f" + content[at + 20 :])
    with pytest.raises(BundleError, match="not a complete bundle"):
        open_bundle(path)


def test_what_a_device_tells_cannot_move_the_cursor_of_who_listens() -> None:
    line = LINE_START + json.dumps({"progress": {"label": "\x1b[2Jowned", "done": 1}})
    assert read_line(line) == {"progress": {"label": "\\x1b[2Jowned", "done": 1}}
    assert read_line(LINE_START + "[" * 100_000) is None


@pytest.mark.parametrize("path", [b"\xff.png", b"a\x00b.png", None])
def test_a_manifest_of_images_with_paths_that_are_none_is_refused(path: bytes | None, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(json.dumps(CARD | {"storage": "files"}))
    np.save(tmp_path / "train_labels.npy", np.zeros(1, np.int64))
    # as text without a check that it is UTF-8
    paths = pa.array([path], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"path": paths}), tmp_path / "train_files.parquet")
    with pytest.raises(DataError, match="does not give every image a path"):
        read_split(tmp_path, "train")


@pytest.mark.parametrize("name", ["../student.pt2", "/student.pt2", "a/b.pt2", "", "..", "\x1b[2J.pt2", None])
def test_a_manifest_cannot_name_a_file_outside_of_its_folder(name: Any, tmp_path: Path) -> None:
    manifest = tmp_path / "export/manifest.json"
    manifest.parent.mkdir()
    for folder in (tmp_path, manifest.parent):
        (folder / "student.pt2").write_bytes(b"code")
    write_manifest(manifest, "student.pt2", name=name)
    with pytest.raises(DataError, match=r"files\.0\.name.* (not a plain file name|valid string)"):
        ExportManifest.read(manifest)


def classifier() -> onnx.ModelProto:
    """The input, flattened, as logits."""
    node = helper.make_node("Flatten", ["input"], ["logits"])
    images = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 2, 2])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 12])
    graph = helper.make_graph([node], "energykd", [images], [logits])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_an_onnx_file_without_an_output_or_with_names_that_are_no_text_is_refused_in_one_line(tmp_path: Path) -> None:
    model = classifier()
    model.graph.node[0].op_type = "\x1b[2J"
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(ModelFileError, match=r"\\x1b\[2J") as caught:
        load("onnxruntime", tmp_path / "odd.onnx", precision="fp32")
    assert str(caught.value).isprintable()
    model = classifier()
    del model.graph.output[:]
    onnx.save(model, tmp_path / "none.onnx")
    with pytest.raises(ModelFileError, match="1 inputs and 0 outputs"):
        load("onnxruntime", tmp_path / "none.onnx", precision="fp32")


@pytest.mark.parametrize("content", [b"step\tval_top1\n" + b"\xff" * 2000, b'"' + b"x" * 200_000, b"step\n0\n"])
def test_a_curve_that_is_none_is_refused_in_a_short_sentence(content: bytes, tmp_path: Path) -> None:
    run = Run(places_in(tmp_path), [STUDENT])
    student = run.network(STUDENT)
    student.card = reported.card(STUDENT)
    path = student.places.curves / "plots/metrics/val_top1.tsv"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    CurvesCard(role="student", weights_sha256=student.card.weights_sha256).write(student.places.curves / CURVES_CARD)
    with pytest.raises(DataError, match="is not a DVCLive curve") as caught:
        read_curves(run)
    assert len(str(caught.value)) < 1000


WHOLE_CARD = CARD_OF_STUDENT | {"format": 2, "parameters": 1, "macs": 1, "weights_sha256": "0" * 64}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights_sha256": None}, "weights_sha256 is null"),
        ({"lineage": {}}, "lineage.data is missing"),
        ({"lineage": CARD_OF_STUDENT["lineage"] | {"energy": 5}}, "lineage.energy is 5"),
        ({"lineage": CARD_OF_STUDENT["lineage"] | {"energy": None}}, "a student's card must have distill, heda"),
        ({"distill": []}, r"distill is \[\]"),
        ({"distill": None}, "a student's card must have distill, heda"),
        ({"num_classes": 10**9}, "num_classes is not the 5 of class_names"),
        ({"network": "\x1b[2J"}, "characters that cannot be shown"),
        ({"val_top1": 1.5}, "val_top1 is 1.5"),
        ({"role": "assistant"}, "role is 'assistant'"),
    ],
)
def test_a_card_of_a_network_of_other_values_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text(json.dumps(WHOLE_CARD))
    NetworkCard.read(tmp_path / "card.json")
    (tmp_path / "card.json").write_text(json.dumps(WHOLE_CARD | change))
    with pytest.raises(DataError, match=words) as caught:
        NetworkCard.read(tmp_path / "card.json")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch": "8"}, r"files\.0\.batch is '8'"),
        ({"precision": "fp8"}, r"files\.0\.precision is 'fp8'"),
        ({"sha256": 5}, r"files\.0\.sha256 is 5"),
        ({"parity": {}}, r"files\.0\.parity\.images is missing"),
        ({"parity": PARITY | {"top1_agreement": "1"}}, r"files\.0\.parity\.top1_agreement is '1'"),
        ({"parity": PARITY | {"top1_agreement": 2.0}}, r"files\.0\.parity.*top1_agreement is 2"),
        ({"parity": PARITY | {"max_abs": -1.0}}, r"files\.0\.parity.*max_abs is -1"),
        ({"parity": PARITY | {"runtime": "\x1b[2J"}}, r"files\.0\.parity\.runtime is"),
        ({"parity": PARITY | {"executed_precision": "\x1b[2J"}}, r"files\.0\.parity\.executed_precision"),
    ],
)
def test_a_manifest_of_other_values_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"onnx")
    write_manifest(tmp_path / "export.json", "a.onnx", **change)
    with pytest.raises(DataError, match=words):
        ExportManifest.read(tmp_path / "export.json")
    (tmp_path / "export.json").write_text('{"format": 3, "lineage": {}, "opset": 18, "files": []}')
    with pytest.raises(DataError, match=r"lineage\.data is missing"):
        ExportManifest.read(tmp_path / "export.json")


def evaluation() -> Evaluation:
    return reported.build_inputs().run.network(STUDENT).evaluation


def _in_rows(**change: Any) -> Change:
    """The change of every row; a key whose value is ... is left out."""

    def changed(document: dict[str, Any]) -> dict[str, Any]:
        rows = [{name: value for name, value in (row | change).items() if value is not ...} for row in document["rows"]]
        return {"rows": rows}

    return changed


def _in_router(**change: Any) -> Change:
    router = json.loads(reported.routing().model_dump_json())
    return _in_rows(routing=router | {"energy": router["energy"] | change})


def _in_accuracy(**change: Any) -> Change:
    return lambda document: _in_rows(accuracy=document["rows"][0]["accuracy"] | change)(document)


@pytest.mark.parametrize(
    ("schema", "whole", "change", "words"),
    [
        (Evaluation, evaluation, _in_rows(routing=...), r"rows\.0\.routing is missing"),
        (Evaluation, evaluation, lambda _: {"test_images": 0}, "test_images is 0"),
        (Evaluation, evaluation, lambda _: {"shot_classes": {"many": 1}}, "shot_classes.* many, medium, few"),
        (Evaluation, evaluation, lambda _: {"group_sizes": {"low": 1}}, "group_sizes.* low, mid, high"),
        (Evaluation, evaluation, lambda _: {"format": 1}, "has format 1, but this version reads 2"),
        (Evaluation, evaluation, _in_rows(name="../a"), "it is not a plain file name"),
        (Evaluation, evaluation, _in_router(top1=None), "top1 must be null if no image is kept"),
        (Evaluation, evaluation, _in_router(curve=[]), r"curve is \[\]"),
        (Evaluation, evaluation, _in_accuracy(top1=1.5), "top1 is 1.5"),
        (Evaluation, evaluation, _in_accuracy(delta_top1=-2.0), "delta_top1 is -2.0"),
        (Evaluation, evaluation, _in_accuracy(correct="ff"), "one bit for each of 360 images"),
        (Evaluation, evaluation, _in_accuracy(correct="0" * 90), "but 0 of 360 images are correct"),
        (Measurement, reported.benchmark, _in_rows(precision=...), r"rows\.0\.precision is missing"),
        (Measurement, reported.benchmark, _in_rows(rounds=None), r"rows\.0\.rounds is null"),
        (Measurement, reported.benchmark, _in_rows(rounds=[{}]), r"rows\.0\.rounds\.0\.samples is missing"),
        (Measurement, reported.benchmark, _in_rows(name="a b"), "is no name of a file or runtime"),
        (Measurement, reported.benchmark, _in_rows(runtime="<script>"), "is no name of a file or runtime"),
        (Measurement, reported.benchmark, _in_rows(notes=["\x1b[2J"]), "characters that cannot be shown"),
        (Measurement, reported.benchmark, _in_rows(latency_p50_ms=-1.0), "latency_p50_ms is -1"),
        (Measurement, reported.benchmark, lambda _: {"device": 5}, "device is 5"),
        (Measurement, reported.benchmark, lambda _: {"machine": []}, r"machine is \[\]"),
        (Measurement, reported.benchmark, lambda _: {"notes": ["\x1b[2J"]}, "characters that cannot be shown"),
        (Measurement, reported.benchmark, lambda _: {"lineage": {"data": "0" * 64}}, "lineage.teacher is missing"),
    ],
)
def test_a_measurement_of_other_values_is_refused(
    schema: Any, whole: Callable[[], Any], change: Change, words: str, tmp_path: Path
) -> None:
    whole().write(tmp_path / "a.json")
    assert schema.read(tmp_path / "a.json") == whole()
    values = read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text(json.dumps(values | change(values)))
    with pytest.raises(DataError, match=words) as caught:
        schema.read(tmp_path / "a.json")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_in_rows(rounds=None), r"rows\.0\.rounds"),
        (_in_rows(latency_p50_ms="1"), r"rows\.0\.latency_p50_ms"),
        (_in_rows(power={"meter": "m"}), r"rows\.0\.power\.idle_watts"),
        (_in_rows(runtime="<script>"), "no name of a file or runtime"),
        (_in_accuracy(correct="ff" * 31), "one bit for each of 256 images"),
        (_in_accuracy(correct="ff" * 33), "one bit for each of 256 images"),
        (_in_accuracy(correct="\u0660" * 64), "no hexadecimal digits"),
        (_in_accuracy(correct="0" * 64), "but 0 of 256 images are correct"),
        (_in_accuracy(correct=None), r"rows\.0\.accuracy\.correct"),
        (lambda _: {"device": "\x1b[2J"}, "device is too long or has characters"),
        (lambda _: {"notes": ["x" * 5000]}, "notes is too long or has characters"),
        (lambda _: {"seconds": -5.0}, "seconds is -5"),
        (lambda _: {"machine": []}, "machine: Input should be"),
    ],
)
def test_a_result_that_a_device_sent_with_other_values_is_refused(change: Change, words: str) -> None:
    sent = reported.device_result().content()
    values = {key: sent[key] for key in ("device", "machine", "tuning", "started_at", "seconds", "notes", "rows")}
    values |= {"plan": {}, "bundle_sha256": "0" * 64}
    assert parse_as(Result, json.dumps(values).encode()).device == sent["device"]
    with pytest.raises(ValueError, match=words):
        parse_as(Result, json.dumps(values | change(values)).encode())


@pytest.mark.parametrize("sha256", [5, None, "0" * 63, ["0" * 64]])
def test_an_index_with_a_hash_that_is_none_is_refused(sha256: Any, tmp_path: Path) -> None:
    budget = dict.fromkeys(BudgetParams.model_fields)
    (tmp_path / "results.json").write_text(json.dumps({"board": {"result_sha256": sha256, "budget": budget}}))
    with pytest.raises(DataError, match=r"is damaged \(board\.result_sha256: "):
        read_index(tmp_path / "results.json")


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ([], r"is damaged \(the whole: "),
        ({"board": {}}, r"is damaged \(board\.result_sha256: "),
        ({"board": {"result_sha256": "0" * 64, "budget": {}}}, r"is damaged \(board\.budget\.choose: "),
        ({"../board": None}, "is damaged"),
        ({"../board": {"result_sha256": "0" * 64, "budget": reported.budget().model_dump()}}, "'../board'"),
        ({"\x1b[2J": {"result_sha256": "0" * 64, "budget": reported.budget().model_dump()}}, "damaged entry"),
    ],
)
def test_an_index_of_other_values_is_refused_in_one_printable_line(index: Any, words: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=words) as caught:
        read_index(tmp_path / "results.json")
    assert str(caught.value).isprintable()


def test_what_unpickles_is_told_not_to_run_code_and_programs_are_loaded_in_one_place() -> None:
    root = Path(pipeline.__file__).parents[1]
    programs, runs_code = [], []
    for path in [
        path
        for folder in ("pipeline", "stages", "models", "bench", "tests/fuzz", "tests/torture")
        for path in (root / folder).rglob("*.py")
    ]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords} if isinstance(node, ast.Call) else {}
            assert not called.startswith(("pickle.", "joblib.", "shelve.")), path
            assert keywords.get("shell", "False") == "False", path
            if called == "torch.jit.load" or (called == "torch.load" and keywords["weights_only"] != "True"):
                runs_code.append(path.relative_to(root).as_posix())
            if called == "np.load":
                assert keywords.get("allow_pickle", "False") == "False", path
            if called == "torch.export.load":
                programs.append(path.relative_to(root).as_posix())
    assert programs == ["pipeline/runtimes/torch_runtime.py"]
    assert runs_code == ["stages/convert.py"] * 2, "only where the user has said --run-code"
