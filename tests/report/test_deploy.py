from __future__ import annotations

import ast
import hashlib
import json
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from pipeline import runtimes
from pipeline.config import TEACHER
from pipeline.data.decoding import pixels_of
from pipeline.data.image_files import decode_at
from pipeline.errors import DataError, LineageError
from pipeline.evaluation.cascade import SCORES, cascade_correct, cascade_curve, sent_on
from pipeline.evaluation.evaluate import split_answers
from pipeline.export.graph import fix_batch, with_energy
from pipeline.lineage import Places, Run
from pipeline.portable.accuracy import Outputs, paired_difference
from pipeline.report.cascades import Cascade
from pipeline.report.deploy import write_deploy
from pipeline.report.rows import Row
from pipeline.store.answers import FileAnswers
from pipeline.store.documents import ImageFormat, NetworkCard
from pipeline.store.paths import model_files
from pipeline.store.tables import sha256_model
from tests.report.conftest import card, changed, data_card

WEIGHT = np.random.default_rng(0).standard_normal((10, 3)).astype(np.float32)
TEMPERATURE = 4.0


def export_onnx(folder: Path, name: str = "student_int8", weight: np.ndarray = WEIGHT) -> Path:
    """A graph from normalised images [N, 3, H, W] to logits [N, 10]: channel means times a matrix."""
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["input"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["means"]),
            helper.make_node("Gemm", ["means", "weight"], ["logits"], transB=1),
        ],
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        [helper.make_tensor("weight", TensorProto.FLOAT, weight.shape, weight.tobytes(), raw=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    model = with_energy(model, TEMPERATURE)
    path = folder / f"{name}.onnx"
    onnx.save(model, path)
    return path


def export_openvino(folder: Path, name: str = "student_int8", weight: np.ndarray = WEIGHT) -> Path:
    import openvino

    path = folder / f"{name}.xml"
    openvino.save_model(openvino.convert_model(export_onnx(folder, name, weight)), path, compress_to_fp16=False)
    return path


EXPORT = {"onnxruntime": export_onnx, "openvino": export_openvino}


def run_in(folder: Path) -> Run:
    """A run of two students and a teacher, each with its own normalisation and an empty export folder."""
    places = Places(students=folder / "students", teacher_export=folder / "teacher_export")
    run = Run(places, ["student", "wide"])
    run.data = data_card()
    for name, mean, std in (("student", 0.3053, 0.3552), ("wide", 0.5, 0.25), (TEACHER, 0.45, 0.225)):
        network = run.network(name)
        network.card = changed(card(network.role), mean=[mean] * 3, std=[std] * 3)
        network.places.export.mkdir(parents=True)
    return run


def exports(run: Run, name: str = "student") -> Path:
    return run.network(name).places.export


def row_for(path: Path, **changes: Any) -> Row:
    """The row of a measured file; of the first student unless changed."""
    values: dict[str, Any] = {
        "name": path.name,
        "role": "student",
        "student": "student",
        "format": "openvino" if path.suffix == ".xml" else "onnx",
        "precision": "int8",
        "runtime": "openvino" if path.suffix == ".xml" else "onnxruntime",
        "device": "Example CPU",
        "target": None,
        "batch": None,
        "size_bytes": sum(part.stat().st_size for part in model_files(path)),
        "sha256": sha256_model(path),
        "precision_executed": "int8",
        "top1": 0.9722,
        "latency_p50_ms": 0.298,
        "energy_threshold": -8.25,
        "on_device_coverage": 0.95,
        "on_device_top1": 339 / 342,
    }
    return Row(**(values | changes))


def run_predict(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # -I: neither this repository nor the user's site is on the path, as on a device.
    command = [sys.executable, "-I", str(folder / "predict.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, timeout=60)


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_in(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def deployed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip(request.param)
    run = run_in(tmp_path_factory.mktemp("run"))
    run.data.class_names[1] = "été <b>\u2028"
    path = EXPORT[request.param](exports(run))
    folder = tmp_path_factory.mktemp("artifacts") / "deploy"
    write_deploy(folder, row_for(path), run)
    return folder


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(4).integers(0, 256, (48, 37, 3), dtype=np.uint8)
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    return path


def test_folder_holds_all_that_is_needed_and_nothing_else(deployed: Path) -> None:
    names = {path.name for path in deployed.iterdir()}
    model = {"student_int8.onnx"} if "student_int8.onnx" in names else {"student_int8.xml", "student_int8.bin"}
    assert names == model | {"labels.txt", "preprocessing.json", "predict.py", "decoding.py", "README.md", "SHA256SUMS"}


def test_checksums_verify(deployed: Path) -> None:
    entries = [line.split("  ") for line in (deployed / "SHA256SUMS").read_text().splitlines()]
    assert {name for _, name in entries} == {path.name for path in deployed.iterdir()} - {"SHA256SUMS"}
    for digest, name in entries:
        assert hashlib.sha256((deployed / name).read_bytes()).hexdigest() == digest
    if shutil.which("sha256sum"):
        command = ["sha256sum", "-c", "--strict", "SHA256SUMS"]  # as README.md says
        assert subprocess.run(command, cwd=deployed, check=False, capture_output=True).returncode == 0


def test_predict_gives_the_answer_of_training_preprocessing(deployed: Path, picture: Path, run: Run) -> None:
    done = run_predict(deployed, str(picture))
    assert (done.returncode, done.stderr) == (0, "")
    with Image.open(picture) as image:
        pixels = pixels_of(image.convert("RGB"), **run.data.image.of_decoding)
    student = run.network("student").card
    logits = WEIGHT @ ((pixels / 255 - student.mean) / student.std).mean(axis=(0, 1))
    expected = np.exp(logits) / np.exp(logits).sum()
    path, label, probability, energy = done.stdout.rstrip("\n").split("\t")
    labels = (deployed / "labels.txt").read_text(encoding="utf-8").split("\n")
    assert path == str(picture)
    assert label == labels[int(expected.argmax())]
    assert float(probability) == pytest.approx(expected.max(), abs=1e-3)
    assert float(energy) == pytest.approx(-TEMPERATURE * np.log(np.exp(logits / TEMPERATURE).sum()), abs=1e-3)


def test_predict_gives_no_answer_beyond_the_threshold_that_it_is_told(deployed: Path, picture: Path) -> None:
    probability, energy = map(float, run_predict(deployed, str(picture)).stdout.split("\t")[2:])
    for option, threshold, rejected in (
        ("--reject-above", energy + 0.01, False),
        ("--reject-above", energy - 0.01, True),
        ("--reject-above", f"{energy - 0.01:e}", True),
        ("--reject-above", "-1e9", True),
        ("--reject-below", probability - 0.01, False),
        ("--reject-below", probability + 0.01, True),
    ):
        done = run_predict(deployed, option, str(threshold), str(picture))
        assert (done.returncode, done.stderr) == (0, "")
        assert (done.stdout.split("\t")[1] == "(rejected)") is rejected


def test_predict_takes_grey_transparent_and_rotated_images(deployed: Path, picture: Path, tmp_path: Path) -> None:
    with Image.open(picture) as image:
        image.convert("L").save(tmp_path / "grey.png")
        image.convert("RGBA").save(tmp_path / "transparent.png")
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(tmp_path / "rotated.jpg", exif=exif)
    done = run_predict(deployed, *(str(tmp_path / name) for name in ("grey.png", "transparent.png", "rotated.jpg")))
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 3


def test_damaged_image_gets_one_sentence_and_exit_code_2(deployed: Path, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_bytes(b"not an image")
    (tmp_path / "short.png").write_bytes(picture.read_bytes()[:800])
    for bad in (str(tmp_path / name) for name in ("text.png", "short.png", "absent.png")):
        done = run_predict(deployed, str(picture), bad)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith(f"{bad} cannot be ")
        assert len(done.stdout.splitlines()) == 1


def test_a_bad_image_does_not_keep_the_others_from_an_answer(deployed: Path, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"GIF89a")
    done = run_predict(deployed, str(picture), str(tmp_path / "bad.png"), str(picture))
    assert done.returncode == 2
    assert len(done.stdout.splitlines()) == 2
    assert "bad.png is a GIF file" in done.stderr


def test_a_path_is_one_line_whatever_it_holds_and_a_folder_is_not_to_be_removed(
    deployed: Path, picture: Path, tmp_path: Path
) -> None:
    odd = picture.rename(tmp_path / "a\tb\n\x1b[2J.png")
    done = run_predict(deployed, str(odd), str(tmp_path / "\n*.jpg"), str(tmp_path))
    assert done.returncode == 2
    assert done.stdout.startswith(str(tmp_path / r"a\tb\n\x1b[2J.png") + "\t")
    missing, folder = done.stderr.splitlines()
    assert missing == f"{tmp_path}/\\n*.jpg cannot be read (No such file or directory); correct the path"
    assert folder == f"{tmp_path} is a folder; name the images in it"


def test_a_folder_that_was_changed_or_lacks_something_is_told_before_the_first_answer(
    deployed: Path, picture: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(deployed, tmp_path / "deploy")
    labels = (folder / "labels.txt").read_text(encoding="utf-8")
    answer = run_predict(deployed, str(picture)).stdout
    (folder / "labels.txt").write_text(labels.partition("\n")[2], encoding="utf-8")
    done = run_predict(folder, str(picture))
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"{folder} is .* changed \(labels.txt has 9 lines for 10 classes\); copy .*\n", done.stderr)
    (folder / "labels.txt").write_bytes(b"\xef\xbb\xbf" + labels.replace("\n", "\r\n").encode())  # as Windows writes it
    assert run_predict(folder, str(picture)).stdout == answer
    (folder / "preprocessing.json").unlink()
    assert re.fullmatch(r".* \(.*No such file.*preprocessing.json.*; copy .*\n", run_predict(folder, "a.png").stderr)
    (folder / "decoding.py").write_text("from PIL import Absent")  # as from an old version
    done = run_predict(folder, str(picture))
    assert done.returncode == 2
    assert re.fullmatch(r".*Absent.*; run `pip install --upgrade numpy pillow .*\n", done.stderr)


def test_predict_answers_in_any_encoding_of_the_terminal(
    deployed: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("labels.txt", "preprocessing.json", "predict.py", "decoding.py"):
        shutil.copy(deployed / name, tmp_path)
    for model in deployed.glob("student*"):
        shutil.copy(model, tmp_path)
    count = len((deployed / "labels.txt").read_text(encoding="utf-8").split("\n")) - 1
    (tmp_path / "labels.txt").write_text("\U0001f600\n" * count, encoding="utf-8")
    command = [sys.executable, str(tmp_path / "predict.py"), str(picture)]
    for encoding in ("latin-1", "ascii", "utf-8"):
        monkeypatch.setenv("PYTHONIOENCODING", encoding)
        done = subprocess.run(command, capture_output=True, check=False, timeout=60)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.split(b"\t")[1] == ("\U0001f600".encode() if encoding == "utf-8" else b"\\U0001f600")


def test_predict_bears_a_closed_output(deployed: Path, picture: Path) -> None:
    command = f"{sys.executable} {deployed / 'predict.py'} {picture} >&-"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


def test_predict_without_arguments_says_how_it_is_used(deployed: Path) -> None:
    done = run_predict(deployed)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: predict.py")


def test_preprocessing_is_that_of_the_data_card(deployed: Path, run: Run) -> None:
    spec = json.loads((deployed / "preprocessing.json").read_text(encoding="utf-8"))
    assert (spec["mean"], spec["std"]) == (run.network("student").card.mean, run.network("student").card.std)
    assert (spec["image_size"], spec["channels"]) == ([32, 32], 3)
    assert (spec["resize"], spec["interpolation"]) == ("squash", "bilinear")
    assert (spec["input"], spec["output"], spec["energy"]) == ("input", "logits", "energy")
    assert spec["energy_threshold"] == -8.25


class Recorder:
    """In place of a runtime's session: keeps its input."""

    inputs: ClassVar[list[np.ndarray]] = []

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def run(self, _: object, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        Recorder.inputs.append(feed["input"])
        return [np.zeros((1, 10), np.float32), np.zeros(1, np.float32)]


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Of many kinds: large and small JPEG, upright and turned, grey, transparent, with a palette, one pixel high."""
    generator = np.random.default_rng(4)
    coarse = Image.fromarray(generator.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    large, small = coarse.resize((640, 480), Image.Resampling.BICUBIC), coarse.resize((50, 30))
    large.convert("CMYK").save(tmp_path / "cmyk.jpg")
    large.convert("L").save(tmp_path / "grey.jpg")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        large.save(tmp_path / f"turned{orientation}.jpg", exif=exif)
        small.save(tmp_path / f"turned{orientation}.png", exif=exif)
    small.convert("L").save(tmp_path / "grey.png")
    small.convert("RGBA").save(tmp_path / "transparent.png")
    small.quantize(16).save(tmp_path / "palette.png")
    small.convert("1").save(tmp_path / "bits.png")
    deep = np.arange(1500, dtype=np.uint16).reshape(30, 50) * 43
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    small.crop((0, 0, 50, 1)).save(tmp_path / "line.png")
    large.save(tmp_path / "large.webp")
    return sorted(path for path in tmp_path.iterdir() if path.is_file())


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resize", ["squash", "crop", "letterbox"])
def test_predict_gives_the_network_the_very_pixels_of_prepare(
    tmp_path_factory: pytest.TempPathFactory,
    pictures: list[Path],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    resize: str,
    channels: int,
    interpolation: str,
) -> None:
    folder = tmp_path_factory.mktemp("deployed")
    form = ImageFormat(height=40, width=28, channels=channels, resize=resize, interpolation=interpolation)
    network = run.network("student")
    network.card = changed(network.card, image=form, mean=[0.0] * channels, std=[1.0] * channels)
    write_deploy(folder / "deploy", row_for(export_onnx(exports(run))), run)
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(InferenceSession=Recorder))
    monkeypatch.setattr(Recorder, "inputs", [])
    monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, pictures)])
    runpy.run_path(str(folder / "deploy/predict.py"), run_name="__main__")
    for path, seen in zip(pictures, Recorder.inputs, strict=True):
        pixels = decode_at(path, form) / 255
        np.testing.assert_array_equal(seen, pixels.transpose(2, 0, 1)[None].astype(np.float32), err_msg=path.name)


def test_predict_is_short_and_has_no_template_left(deployed: Path) -> None:
    program = (deployed / "predict.py").read_text(encoding="utf-8")
    assert "{{" not in program
    assert "{%" not in program
    assert len(program.splitlines()) < 70


def test_readme_of_a_tensorrt_recommendation_says_what_predict_runs(tmp_path: Path, run: Run) -> None:
    row = changed(row_for(export_onnx(exports(run))), runtime="tensorrt")
    write_deploy(tmp_path / "deploy", row, run)
    assert "build a TensorRT engine of it on the device" in " ".join(
        (tmp_path / "deploy/README.md").read_text().split()
    )
    assert "import onnxruntime" in (tmp_path / "deploy/predict.py").read_text()


def test_readme_names_the_energy_above_which_to_reject_and_what_that_keeps(tmp_path: Path, run: Run) -> None:
    row = row_for(export_onnx(exports(run)))
    write_deploy(tmp_path / "deploy", row, run)
    text = (tmp_path / "deploy/README.md").read_text()
    assert "predict.py --reject-above -8.25 image.png" in text
    assert "kept 95.0 % of the images, of which 99.12 % were right" in text
    write_deploy(tmp_path / "deploy", changed(row, energy_threshold=None), run)
    assert "--reject-above" not in (tmp_path / "deploy/README.md").read_text()


def test_predict_fills_the_batch_of_a_file_that_takes_several_images(tmp_path: Path, run: Run, picture: Path) -> None:
    import onnx

    path = export_onnx(exports(run))
    expected = None
    for batch in (None, 3):
        if batch is not None:
            model = onnx.load(path)
            fix_batch(model, batch)
            onnx.save(model, path)
        write_deploy(tmp_path / "deploy", changed(row_for(path), batch=batch), run)
        done = run_predict(tmp_path / "deploy", str(picture))
        assert (done.returncode, done.stderr) == (0, "")
        expected = expected or done.stdout
        assert done.stdout == expected


def test_file_that_is_not_the_measured_one_is_refused(tmp_path: Path, run: Run) -> None:
    path = export_onnx(exports(run))
    row = row_for(path)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(LineageError, match=row.sha256[:12]):
        write_deploy(tmp_path / "deploy", row, run)
    path.unlink()
    with pytest.raises(DataError, match="does not exist"):
        write_deploy(tmp_path / "deploy", row, run)
    assert not (tmp_path / "deploy").exists()


@pytest.mark.parametrize("name", ["two\nlines", "carriage\rreturn", "\x1b[2J"])
def test_class_name_with_a_line_break_or_an_escape_sequence_is_refused(tmp_path: Path, run: Run, name: str) -> None:
    row = row_for(export_onnx(exports(run)))
    run.data.class_names[0] = name
    with pytest.raises(DataError, match="line break"):
        write_deploy(tmp_path / "deploy", row, run)


def test_predict_does_not_hand_a_picture_to_a_decoder_that_starts_programs(deployed: Path, tmp_path: Path) -> None:
    # Pillow decodes EPS with Ghostscript, whatever the ending says
    (tmp_path / "picture.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n%%EndComments\nshowpage\n")
    done = run_predict(deployed, str(tmp_path / "picture.png"))
    assert done.returncode == 2
    assert "is a PostScript file" in done.stderr


def test_predict_does_not_decode_an_image_of_100_megapixels(deployed: Path, tmp_path: Path) -> None:
    # 1 bit per pixel: a file of a few kB
    Image.new("1", (10_000, 10_000)).save(tmp_path / "large.png")
    done = run_predict(deployed, str(tmp_path / "large.png"))
    assert done.returncode == 2
    assert "more than 64 megapixels" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_name_of_the_file_is_a_string_in_predict_whatever_it_holds(tmp_path: Path, run: Run) -> None:
    source = export_onnx(exports(run))
    row = row_for(source)
    name = 'a"); open("owned", "w").close(); ("b.onnx'
    source.rename(exports(run) / name)
    write_deploy(tmp_path / "deploy", changed(row, name=name), run)
    tree = ast.parse((tmp_path / "deploy/predict.py").read_text(encoding="utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value == "owned"]
    assert [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value == name]


@dataclass(frozen=True)
class Deployed:
    """The folder of a cascade, its images as files, and what the evaluation says of them."""

    folder: Path
    cascade: Cascade
    images: list[Path]
    labels: list[str]
    sent: np.ndarray

    def predict(self, *options: str) -> list[list[str]]:
        done = run_predict(self.folder, *options, *map(str, self.images))
        assert (done.returncode, done.stderr) == (0, "")
        return [line.split("\t") for line in done.stdout.splitlines()]


def answers_of(path: Path, runtime: str, card: NetworkCard, pixels: np.ndarray, labels: np.ndarray) -> FileAnswers:
    """As the stage evaluate makes them: the first half of the images [N, H, W, 3] are validation images."""
    images = ((pixels / 255 - card.mean) / card.std).transpose(0, 3, 1, 2).astype(np.float32)
    outputs = runtimes.load(runtime, path, precision="fp32").run(images)
    half = len(labels) // 2
    parts = (
        split_answers(Outputs(outputs.logits[part], outputs.energy[part]), labels[part])
        for part in (slice(half), slice(half, None))
    )
    return FileAnswers(*parts)


@pytest.fixture(scope="module", params=[(runtime, score) for runtime in EXPORT for score in SCORES], ids=" ".join)
def cascade(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    runtime, score = request.param
    pytest.importorskip(runtime)
    tmp = tmp_path_factory.mktemp("cascade")
    run, generator = run_in(tmp / "run"), np.random.default_rng(5)
    names = ["student", TEACHER if runtime == "onnxruntime" else "wide"]
    weights = [WEIGHT, WEIGHT + 0.5 * generator.standard_normal(WEIGHT.shape).astype(np.float32)]
    paths = [
        EXPORT[runtime](exports(run, name), f"{name}_fp32", weight) for name, weight in zip(names, weights, strict=True)
    ]
    # of one colour each, because the networks see the mean of a channel
    pixels = np.broadcast_to(generator.integers(0, 256, (120, 1, 1, 3), dtype=np.uint8), (120, 32, 32, 3))
    cards = [run.network(name).card for name in names]
    wide = runtimes.load(runtime, paths[1], precision="fp32")
    seen = ((pixels / 255 - cards[1].mean) / cards[1].std).transpose(0, 3, 1, 2).astype(np.float32)
    labels = wide.run(seen).logits.argmax(axis=1)
    labels[::7] = (labels[::7] + 1) % 10
    small, large = (answers_of(path, runtime, card, pixels, labels) for path, card in zip(paths, cards, strict=True))
    curve = cascade_curve(small, large, 0.3, 0.9, score)
    point = min(curve, key=lambda point: abs(point.val_sent - 0.4))
    correct = cascade_correct(small.test, large.test, point)
    rows = [
        row_for(path, student=run.network(name).student, latency_p50_ms=latency, precision="fp32")
        for path, name, latency in zip(paths, names, (0.3, 0.9), strict=True)
    ]
    delta = paired_difference(correct, large.test.correct)
    chosen = Cascade(*rows, **vars(point), delta=delta, correct=correct, curve=curve)
    write_deploy(tmp / "deploy", chosen, run)
    images = [tmp / f"{number}.png" for number in range(60)]
    for path, image in zip(images, pixels[60:], strict=True):
        Image.fromarray(image).save(path)
    class_names = [run.data.class_names[label] for label in labels[60:]]
    return Deployed(tmp / "deploy", chosen, images, class_names, sent_on(small.test, point))


def test_a_cascade_answers_each_image_as_the_evaluation_says(cascade: Deployed) -> None:
    small, large = cascade.cascade.small.name, cascade.cascade.large.name
    found = cascade.predict()
    assert [line[0] for line in found] == list(map(str, cascade.images))
    assert [line[4] for line in found] == [large if sent else small for sent in cascade.sent]
    right = [line[1] == label for line, label in zip(found, cascade.labels, strict=True)]
    assert right == cascade.cascade.correct.tolist()
    assert 0.2 < cascade.sent.mean() < 0.8
    assert 0.2 < np.mean(right) < 1


def test_the_threshold_of_a_cascade_can_be_another_one(cascade: Deployed) -> None:
    small, large = cascade.cascade.small.name, cascade.cascade.large.name
    none, everything = ("1e9", "-1e9") if cascade.cascade.score == "energy" else ("0", "1.1")
    assert {line[4] for line in cascade.predict("--threshold", none)} == {small}
    assert {line[4] for line in cascade.predict("--threshold", everything)} == {large}
    assert {line[4] for line in cascade.predict(f"--threshold={everything}")} == {large}
    assert cascade.predict(f"--threshold={cascade.cascade.threshold!r}") == cascade.predict()


@pytest.mark.parametrize("value", ["many", "nan", ""])
def test_a_threshold_that_is_no_number_is_a_wrong_argument(cascade: Deployed, value: str) -> None:
    done = run_predict(cascade.folder, f"--threshold={value}", str(cascade.images[0]))
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: argument --threshold: " in done.stderr.splitlines()[-1]


def test_a_cascade_without_one_of_its_files_is_told_before_the_first_answer(cascade: Deployed, tmp_path: Path) -> None:
    for row in (cascade.cascade.small, cascade.cascade.large):
        for part in model_files(Path(row.name)):
            folder = shutil.copytree(cascade.folder, tmp_path / part.name)
            (folder / part).unlink()
            done = run_predict(folder, str(cascade.images[0]))
            assert (done.returncode, done.stdout) == (2, "")
            assert re.fullmatch(rf"{folder} is incomplete or changed \(.*\); copy the folder once more\n", done.stderr)


def test_a_cascade_whose_threshold_was_lost_is_told_before_the_first_answer(cascade: Deployed, tmp_path: Path) -> None:
    folder = shutil.copytree(cascade.folder, tmp_path / "deploy")
    path = folder / "preprocessing.json"
    spec = json.loads(path.read_text(encoding="utf-8"))
    for broken in (None, "high", []):
        path.write_text(json.dumps(spec | {"cascade": spec["cascade"] | {"threshold": broken}}))
        done = run_predict(folder, str(cascade.images[0]))
        assert (done.returncode, done.stdout) == (2, "")
        assert len(done.stderr.splitlines()) == 1
    assert run_predict(folder, "--threshold", "0.5", str(cascade.images[0])).returncode == 0


def test_the_folder_of_a_cascade_holds_both_files_and_their_checksums(cascade: Deployed) -> None:
    models = {
        part.name for row in (cascade.cascade.small, cascade.cascade.large) for part in model_files(Path(row.name))
    }
    texts = {"labels.txt", "preprocessing.json", "predict.py", "decoding.py", "README.md"}
    assert {path.name for path in cascade.folder.iterdir() if path.is_file()} == models | texts | {"SHA256SUMS"}
    sums = dict(line.split("  ")[::-1] for line in (cascade.folder / "SHA256SUMS").read_text().splitlines())
    assert sums == {name: hashlib.sha256((cascade.folder / name).read_bytes()).hexdigest() for name in models | texts}


def test_each_file_of_a_cascade_keeps_its_own_normalisation(cascade: Deployed) -> None:
    spec = json.loads((cascade.folder / "preprocessing.json").read_text(encoding="utf-8"))
    assert spec["mean"] == [0.3053] * 3
    larger = 0.45 if cascade.cascade.large.student is None else 0.5
    assert spec["cascade"] == {
        "score": cascade.cascade.score,
        "threshold": cascade.cascade.threshold,
        "larger": {"mean": [larger] * 3, "std": [larger / 2] * 3},
    }
    assert "energy_threshold" not in spec


def test_readme_of_a_cascade_says_what_it_gains_and_what_a_single_image_takes(cascade: Deployed) -> None:
    text = (cascade.folder / "README.md").read_text(encoding="utf-8")
    found = cascade.cascade
    assert f"# {found.small.name} and {found.large.name}\n" in text
    assert f"top-1 {100 * found.top1:.2f} % on the test split" in text
    assert f"{100 * found.sent:.1f} % of its images sent on" in text
    assert f"{found.latency_ms:.3f} ms an image on average" in text
    assert "A single image takes 0.300 ms, or 1.20 ms if it is sent on" in text
    assert f"python predict.py --threshold {found.threshold!r} image.png" in text
    assert "its energy is above" in text if found.score == "energy" else "its largest probability is below" in text
    if found.small.runtime == "openvino":
        assert text.count("INFERENCE_PRECISION_HINT") == 2


def test_a_cascade_with_a_file_that_is_not_the_measured_one_is_refused(cascade: Deployed, run: Run) -> None:
    chosen, folder = cascade.cascade, run.places.students / "deploy"
    for row in (chosen.small, chosen.large):
        for part in model_files(Path(row.name)):
            shutil.copy(cascade.folder / part, exports(run, row.student or TEACHER))
    write_deploy(folder, chosen, run)
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    large = exports(run, chosen.large.student or TEACHER) / chosen.large.name
    large.write_bytes(large.read_bytes() + b" ")
    with pytest.raises(LineageError, match=chosen.large.sha256[:12]):
        write_deploy(folder, chosen, run)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == kept


def test_predict_of_a_cascade_has_no_template_left_and_compiles(cascade: Deployed) -> None:
    program = (cascade.folder / "predict.py").read_text(encoding="utf-8")
    assert not re.search(r"\{\{|\{%|\}\}", program)
    assert len(program.splitlines()) < 75
    ast.parse(program)
