"""The whole export: which files, what is recorded of them, and what is refused."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from timm.models.byobnet import RepVggBlock
from torch import nn

import pipeline
from pipeline import runtimes
from pipeline.errors import ExportError
from pipeline.export import graph
from pipeline.export.files import plan
from pipeline.store.documents import ExportedFile
from pipeline.store.paths import model_files
from tests.conftest import STUDENT

from .conftest import CLASSES, ONNX, SIZE, Exported, write

STUDENT_FILES = [
    "student_fp32.pt2",
    "student_fp32.onnx",
    "student_fp16.onnx",
    "student_int8.onnx",
    "student_fp32.xml",
    "student_fp16.xml",
    "student_int8.xml",
    "student_int8_tensorrt.onnx",
]


def _one_sentence(message: str) -> bool:
    return "\n" not in message and not message.endswith(".") and ";" in message


def test_all_planned_files_are_written_and_nothing_else(exported: Exported) -> None:
    names = [*STUDENT_FILES, "teacher_fp32.onnx"]
    params = exported.sources["student"].params
    planned = [*plan(params, STUDENT), *plan(params, None)]
    assert list(exported.files) == [file.name for file in planned] == names
    layers = [f"{name}, layer {number} of 3" for name in names if "int8" in name for number in (1, 2, 3)]
    assert [step for step in exported.progress if step[2] not in layers] == [
        *((done, 8, name) for done, name in enumerate([*STUDENT_FILES, ""])),
        *[(0, 1, "teacher_fp32.onnx"), (1, 1, "")],
    ]
    assert [name for _, _, name in exported.progress if name in layers] == layers
    written = {path.name for path in exported.folder.iterdir()}
    assert written == set(names) | {"student_fp32.bin", "student_fp16.bin", "student_int8.bin"}


def test_plan_leaves_out_what_params_leave_out(exported: Exported) -> None:
    params = exported.sources["student"].params
    fewer = params.model_copy(
        update={"precisions": ["int8", "fp32"], "openvino": False, "tensorrt": False, "teacher": False}
    )
    names = ["student_fp32.pt2", "student_fp32.onnx", "student_int8.onnx"]
    assert [file.name for file in plan(fewer, STUDENT)] == names
    assert plan(fewer, None) == []
    assert [file.name for file in plan(params.model_copy(update={"teacher": False}), STUDENT)] == STUDENT_FILES


def test_files_are_named_after_their_network_and_unlike_those_of_others(exported: Exported) -> None:
    params = exported.sources["student"].params
    small = plan(params, "small")
    assert [file.name for file in small] == [name.replace("student", "small") for name in STUDENT_FILES]
    assert {(file.student, file.role) for file in small} == {("small", "student")}
    [teacher] = plan(params, None)
    assert (teacher.name, teacher.student, teacher.role) == ("teacher_fp32.onnx", None, "teacher")
    alike = ("small", "small_int8", "small-int8", "small_int8_tensorrt", "teacher_fp32", None)
    names = [file.name for student in alike for file in plan(params, student)]
    assert len(set(names)) == len(names)


def test_entries_describe_the_bytes_on_disk(exported: Exported) -> None:
    for name, file in exported.files.items():
        content = (exported.folder / name).read_bytes()
        if file.format == "openvino":
            content += (exported.folder / name).with_suffix(".bin").read_bytes()
        assert file.size_bytes == len(content)
        assert file.sha256 == hashlib.sha256(content).hexdigest()


def test_entries_say_what_a_file_was_compared_on_and_by(exported: Exported) -> None:
    entry = exported.files["student_int8.onnx"]
    assert ExportedFile.model_validate_json(entry.model_dump_json(), strict=True) == entry
    assert (entry.role, entry.student, entry.format, entry.precision) == ("student", "student", "onnx", "int8")
    assert entry.fp32_layers == []
    assert (entry.parity.images, entry.parity.runtime) == (len(exported.images), "onnxruntime")
    assert 0 < entry.parity.energy_max_abs < 0.5


def test_every_file_computes_what_its_network_computes(exported: Exported) -> None:
    for file in exported.files.values():
        assert file.parity.cosine > 0.99
        assert file.parity.top1_agreement >= 0.95
        if file.precision == "fp32":
            assert file.parity.max_abs < 1e-4
            assert file.parity.executed_precision == "fp32"


def test_second_export_gives_the_same_bytes(exported: Exported, tmp_path: Path) -> None:
    student = replace(exported.sources["student"])  # nothing of it is made yet
    again = write(tmp_path / "elsewhere" / "files", plan(student.params, STUDENT), student)
    assert {file.name: file.sha256 for file in again} == {name: exported.files[name].sha256 for name in STUDENT_FILES}


def test_no_file_holds_a_path_or_source_line_of_this_machine(exported: Exported) -> None:
    places = {Path(pipeline.__file__).parents[1], Path(torch.__file__).parents[1], Path.home(), Path(__file__).parent}
    needles = {str(place) for place in places} | {tempfile.gettempdir() + "/", "conftest.py", "site-packages"}
    for path in exported.folder.iterdir():
        content = path.read_bytes()
        assert [needle for needle in needles if needle.encode() in content] == [], path.name


def test_networks_are_left_as_they_are(exported: Exported) -> None:
    student = exported.student
    assert student.training
    assert student.stem[2].inplace
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert all(torch.equal(value, exported.before[name]) for name, value in student.state_dict().items())


@pytest.mark.parametrize("name", STUDENT_FILES)
def test_a_file_alone_in_another_folder_gives_the_same_answers_for_any_batch_size(
    exported: Exported, tmp_path: Path, name: str
) -> None:
    original = exported.folder / name
    for part in model_files(original):
        shutil.copy(part, tmp_path)
    file = exported.files[name]
    here, there = (
        runtimes.load(file.parity.runtime, path, precision=file.precision) for path in (original, tmp_path / name)
    )
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
    for name, role in ((STUDENT, "student"), (None, "teacher")):
        source = exported.changed(role=role, images=7, batch=batch, ir_version=9)
        planned = [file for file in plan(source.params, name) if batch > 1 or file.format != "torch"]
        for file in write(tmp_path, planned, source):
            assert file.batch == (None if file.format == "torch" else batch)
            assert file.parity.images == 7
            if file.format == "torch" or file.role == "teacher":
                continue
            runtime = runtimes.load(file.parity.runtime, tmp_path / file.name, precision=file.precision)
            answers = runtimes.run_padded(runtime, exported.images[: min(2, batch)], batch)
            np.testing.assert_allclose(answers.logits, exported.logits[: min(2, batch)], atol=0.5)
            with pytest.raises(Exception):  # noqa: B017  each runtime has its own
                runtime.run(exported.images[: batch + 1])
    model = onnx.load(tmp_path / "student_int8.onnx")
    assert model.ir_version == 9
    sizes = [value.type.tensor_type.shape.dim[0].dim_value for value in (*model.graph.input, *model.graph.output)]
    assert sizes == [batch, batch, batch]


def test_a_tampered_file_stops_the_export(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = graph.write

    def write_tampered(model: onnx.ModelProto, path: Path, metadata: dict[str, str]) -> None:
        bias = next(tensor for tensor in model.graph.initializer if tensor.name == "classifier.bias")
        values = numpy_helper.to_array(bias) + np.float32(0.01)
        bias.CopyFrom(numpy_helper.from_array(values, bias.name))
        original(model, path, metadata)

    monkeypatch.setattr(graph, "write", write_tampered)
    with pytest.raises(ExportError, match=r"student_fp32\.onnx differs .* up to 0\.01 .* limit of 0\.0001; ") as caught:
        write(tmp_path, [ONNX["fp32"]], exported.sources["student"])
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
        (_FixedBatch(), "dynamic batch size"),
    ],
)
def test_networks_that_cannot_be_exported_are_refused_with_the_reason(
    exported: Exported, tmp_path: Path, network: nn.Module, reason: str
) -> None:
    with pytest.raises(ExportError, match=reason) as caught:
        write(tmp_path, [ONNX["fp32"]], replace(exported.sources["student"], trained=network))
    assert _one_sentence(str(caught.value))


def test_branches_that_only_the_training_needs_are_merged(tmp_path: Path, exported: Exported) -> None:
    blocks = [RepVggBlock(3, 8), RepVggBlock(8, 8)]
    network = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))
    network(torch.from_numpy(exported.images))  # gives the batch normalisations their statistics
    source = replace(exported.sources["student"], trained=network)
    assert len([node for node in source.graph.graph.node if node.op_type == "Conv"]) == len(blocks)
    fp32, int8 = write(tmp_path, [ONNX["fp32"], ONNX["int8"]], source)
    assert fp32.parity.max_abs < 1e-5
    assert int8.fp32_layers == []
    assert len([module for module in network.modules() if isinstance(module, nn.Conv2d)]) == 2 * len(blocks)
