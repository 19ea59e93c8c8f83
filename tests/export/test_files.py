"""The whole export: which files, what is recorded of them, and what is refused."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import pipeline
from pipeline import runtimes
from pipeline.errors import ExportError
from pipeline.export import onnx_file, plan
from pipeline.store.tables import model_files

from .conftest import CLASSES, SIZE, Exported

STUDENT_FILES = [
    "student_fp32.pt2",
    "student_fp32.onnx",
    "student_fp16.onnx",
    "student_int8.onnx",
    "student_fp32.xml",
    "student_fp16.xml",
    "student_int8.xml",
]


def _one_sentence(message: str) -> bool:
    return "\n" not in message and not message.endswith(".") and ";" in message


def test_all_planned_files_are_written_and_nothing_else(exported: Exported) -> None:
    names = [*STUDENT_FILES, "teacher_fp32.onnx"]
    assert list(exported.files) == [file.name for file in plan(exported.params, teacher=True)] == names
    assert exported.progress == names
    written = {path.name for path in exported.folder.iterdir()}
    assert written == set(names) | {"student_fp32.bin", "student_fp16.bin", "student_int8.bin"}


def test_plan_leaves_out_what_params_leave_out(exported: Exported) -> None:
    params = exported.params.model_copy(update={"precisions": ["int8", "fp32"], "openvino": False, "teacher": False})
    names = ["student_fp32.pt2", "student_fp32.onnx", "student_int8.onnx"]
    assert [file.name for file in plan(params, teacher=True)] == names
    assert [file.name for file in plan(exported.params, teacher=False)] == STUDENT_FILES


def test_entries_describe_the_bytes_on_disk(exported: Exported) -> None:
    for name, file in exported.files.items():
        content = (exported.folder / name).read_bytes()
        if file.format == "openvino":
            content += (exported.folder / name).with_suffix(".bin").read_bytes()
        assert file.size_bytes == len(content)
        assert file.sha256 == hashlib.sha256(content).hexdigest()


def test_entries_are_ready_for_the_manifest(exported: Exported) -> None:
    entry = exported.files["student_int8.onnx"].entry()
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry
    assert list(entry) == [
        "name",
        "role",
        "format",
        "precision",
        "sha256",
        "size_bytes",
        "batch",
        "float_nodes",
        "parity",
    ]
    assert entry["parity"]["images"] == len(exported.images)
    assert entry["parity"]["runtime"] == "onnxruntime"
    assert entry["parity"].keys() >= {"max_abs", "mean_abs", "cosine", "top1_agreement", "executed_precision"}
    assert 0 < entry["parity"]["energy_max_abs"] < 0.5


def test_every_file_computes_what_its_network_computes(exported: Exported) -> None:
    for file in exported.files.values():
        assert file.parity.cosine > 0.99
        assert file.parity.top1_agreement >= 0.95
        if file.precision == "fp32":
            assert file.parity.max_abs < 1e-4
            assert file.executed_precision == "fp32"


def test_second_export_gives_the_same_bytes(exported: Exported, tmp_path: Path) -> None:
    again = exported.again(tmp_path / "elsewhere" / "files")
    assert {file.name: file.sha256 for file in again} == {name: file.sha256 for name, file in exported.files.items()}


def test_no_file_holds_a_path_or_source_line_of_this_machine(exported: Exported) -> None:
    places = {Path(pipeline.__file__).parents[1], Path(torch.__file__).parents[1], Path.home(), Path(__file__).parent}
    needles = {str(place) for place in places} | {tempfile.gettempdir() + "/", "conftest.py", "site-packages"}
    for path in exported.folder.iterdir():
        content = path.read_bytes()
        assert [needle for needle in needles if needle.encode() in content] == [], path.name


def test_networks_are_left_as_they_are(exported: Exported, tmp_path: Path) -> None:
    student = copy.deepcopy(exported.student)
    before = copy.deepcopy(student.state_dict())
    exported.again(tmp_path, student=student, teacher=None, params=_onnx_only(exported))
    assert student.training
    assert student.stem[2].inplace
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


@pytest.mark.parametrize("name", STUDENT_FILES)
def test_a_file_alone_in_another_folder_gives_the_same_answers_for_any_batch_size(
    exported: Exported, tmp_path: Path, name: str
) -> None:
    original = exported.folder / name
    for part in model_files(original):
        shutil.copy(part, tmp_path)
    file = exported.files[name]
    here, there = (runtimes.load(file.runtime, path, precision=file.precision) for path in (original, tmp_path / name))
    for batch in (1, 2, 5):
        logits, energy = there.run(exported.images[:batch])
        assert logits.shape == (batch, CLASSES)
        assert energy.shape == (batch,)
        assert logits.dtype == energy.dtype == np.float32
        for answer, other in zip((logits, energy), here.run(exported.images[:batch]), strict=True):
            assert np.array_equal(answer, other)
        np.testing.assert_allclose(logits, exported.logits[:batch], atol=0.5)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_fixed_batch_is_in_every_file_but_the_torch_program_and_proved_with_it(
    exported: Exported, tmp_path: Path, batch: int
) -> None:
    params = exported.params.model_copy(update={"batch": batch, "ir_version": 9})
    files = {file.name: file for file in exported.again(tmp_path, params=params, parity_images=exported.images[:7])}
    for name, file in files.items():
        assert file.batch == (None if file.format == "torch" else batch)
        assert file.parity.images == 7
        if file.format == "torch" or file.role == "teacher":
            continue
        runtime = runtimes.load(
            file.format if file.format == "openvino" else "onnxruntime", tmp_path / name, precision=file.precision
        )
        answers = runtimes.run_padded(runtime, exported.images[: min(2, batch)], batch)
        np.testing.assert_allclose(answers.logits, exported.logits[: min(2, batch)], atol=0.5)
        with pytest.raises(Exception):  # noqa: B017  each runtime has its own
            runtime.run(exported.images[: batch + 1])
    model = onnx.load(tmp_path / "student_int8.onnx")
    assert model.ir_version == 9
    sizes = [value.type.tensor_type.shape.dim[0].dim_value for value in (*model.graph.input, *model.graph.output)]
    assert sizes == [batch, batch, batch]


def test_a_tampered_file_stops_the_export(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = onnx_file.graph.write

    def write_tampered(model: onnx.ModelProto, path: Path, metadata: dict[str, str]) -> None:
        bias = next(tensor for tensor in model.graph.initializer if tensor.name == "classifier.bias")
        values = numpy_helper.to_array(bias) + np.float32(0.01)
        bias.CopyFrom(numpy_helper.from_array(values, bias.name))
        write(model, path, metadata)

    monkeypatch.setattr(onnx_file.graph, "write", write_tampered)
    with pytest.raises(ExportError, match=r"student_fp32\.onnx differs .* up to 0\.01 .* limit of 0\.0001; ") as caught:
        exported.again(tmp_path)
    assert _one_sentence(str(caught.value))


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (np.zeros((4, 3, SIZE, SIZE + 1), np.float32), "where float32"),
        (np.zeros((4, 3, SIZE, SIZE), np.float64), "float64"),
        (np.zeros((0, 3, SIZE, SIZE), np.float32), "are none"),
        (np.full((4, 3, SIZE, SIZE), np.nan, np.float32), "not finite"),
    ],
)
@pytest.mark.parametrize("argument", ["calibration_images", "parity_images"])
def test_unusable_images_are_refused(
    exported: Exported, tmp_path: Path, images: np.ndarray, reason: str, argument: str
) -> None:
    with pytest.raises(ExportError, match=reason) as caught:
        exported.again(tmp_path, **{argument: images})
    assert argument.split("_", maxsplit=1)[0] in str(caught.value)
    assert _one_sentence(str(caught.value))


def test_a_folder_that_cannot_be_made_is_named(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ExportError, match=r"taken is a file; remove it") as caught:
        exported.again(tmp_path / "taken")
    assert _one_sentence(str(caught.value))


class _FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * SIZE * SIZE, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.layer(images.flatten(1))
        return logits if images.shape[0] != 2 else logits.view(2, CLASSES)


class _TwoOutputs(nn.Module):
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images.mean((2, 3)), images


class _NotFinite(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) / 0


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(7, CLASSES)), "the student cannot run images of 16 x 16"),
        (_TwoOutputs(), "does not return logits"),
        (_NotFinite(), "not finite"),
        (_FixedBatch(), "free batch size"),
    ],
)
def test_networks_that_cannot_be_exported_are_refused_with_the_reason(
    exported: Exported, tmp_path: Path, network: nn.Module, reason: str
) -> None:
    with pytest.raises(ExportError, match=reason) as caught:
        exported.again(tmp_path, student=network)
    assert _one_sentence(str(caught.value))


def _onnx_only(exported: Exported) -> object:
    return exported.params.model_copy(update={"precisions": ["fp32"], "openvino": False})
