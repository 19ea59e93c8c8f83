"""The readers of ours that meet other people's files, by name, and a process that feeds one of them.

python -m tests.fuzz.targets NAME FIRST COUNT FOLDER
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import random
import sys
import zipfile
import zlib
from contextlib import chdir
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import safetensors.torch
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

from bench.setting import data_params
from pipeline import remote, targets
from pipeline.config import TEACHER, load_params
from pipeline.data import store
from pipeline.data.image_files import decode_at
from pipeline.data.loader import open_images
from pipeline.data.normalisation import Normalisation
from pipeline.device.benchmark.plan import Plan, Variant
from pipeline.device.service import bundle as bundles
from pipeline.evaluation.measure import MeasurementRequest, make_plan
from pipeline.evaluation.runnable import runnable_files
from pipeline.export import graph as graphs
from pipeline.export.half_precision import to_fp16
from pipeline.export.int8.quantize import Quantizer
from pipeline.export.structure import check_structure
from pipeline.lineage import Places, Run
from pipeline.portable.accuracy import Expected
from pipeline.report.build import build_report
from pipeline.report.inputs import read_inputs
from pipeline.report.page import render_page
from pipeline.runtimes import load
from pipeline.store import paths
from pipeline.store.answers import Answers
from pipeline.store.documents import NetworkCard
from pipeline.training import weights
from pipeline.training.card import card_facts, checkpoint_facts
from tests.conftest import ROOT, STUDENT, squashed, state_hash
from tests.fuzz.cases import Outcome, tell_cases
from tests.fuzz.judge import Files, Target, judge
from tests.fuzz.kinds import damage
from tests.fuzz.mutate import as_json
from tests.report import conftest as runs
from tests.report.test_inputs import write_run

_PARAMS = load_params(ROOT / "params.yaml")
_START_SECONDS = 300
_PAGES = 40  # the page's plots take a second, so one case in so many makes it


def judge_seed(name: str, seed: int, valid: list[Files], folder: Path) -> Outcome:
    """Judge the case of a seed, which is the same whenever it is made."""
    rng = random.Random(f"{name} {seed}")
    return judge(TARGETS[name], TARGETS[name].damage(rng.choice(valid), rng), folder)


def _only(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# ---- settings that people write


def _make_settings(folder: Path, pattern: str) -> None:
    """As they are shipped, without comments, which take most of a reader's time."""
    for path in ROOT.glob(pattern):
        lines = [line.partition(" #")[0].rstrip() for line in path.read_text(encoding="utf-8").splitlines()]
        (folder / path.stem).mkdir()
        (folder / path.stem / "file.yaml").write_text("\n".join(line for line in lines if line and line[0] != "#"))


# ---- the store of a data set, and image files


def _make_stores(folder: Path) -> None:
    images = folder.with_name("images")
    for index, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (18, 8, 8, 3), np.uint8)):
        path = images / ("train", "val", "test")[index % 3] / f"class{index // 6}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    for storage in ("packed", "files"):
        store.make_store(folder / storage, data_params("imagefolder", images, 8, storage))


def _damage_store(valid: Files, rng: random.Random) -> Files:
    return damage(*(path for path in valid if path.stem == "data" or path.stem.startswith("train")))(valid, rng)


def _read_store(folder: Path, out: Path) -> None:
    card = store.read_card(folder)
    card_facts("teacher", "resnet8", card, {})
    images = open_images(folder, "train", torch.device("cpu"), Normalisation.of(card))
    found = images.centre(torch.arange(min(len(images), 2)))
    assert found.shape[1:] == card.image.shape, "images of another size were let through"
    assert 0 <= int(images.labels.min()) <= int(images.labels.max()) < len(card.class_names), "a foreign label"


def _make_images(folder: Path) -> None:
    ramp = np.arange(24 * 20 * 4, dtype=np.uint8).reshape(24, 20, 4)
    rgba, grey16 = Image.fromarray(ramp), Image.fromarray(ramp[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = {"exif": exif.tobytes()}
    made = (
        ("jpeg", rgba.convert("RGB"), {"quality": 80} | upright),
        ("jpeg", rgba.convert("CMYK"), {"progressive": True}),
        ("jpeg", rgba.convert("L"), {}),
        ("png", rgba, {}),
        ("png", rgba.convert("P"), {"transparency": 0}),
        ("png", grey16, {}),
        ("png", rgba.convert("1"), {}),
        ("webp", rgba, {"lossless": True}),
        ("webp", rgba.convert("RGB"), {"quality": 50} | upright),
        ("bmp", rgba.convert("RGB"), {}),
        ("bmp", rgba.convert("P"), {}),
        ("tiff", rgba.convert("RGB"), {"compression": "tiff_lzw"}),
        ("tiff", grey16, {"compression": "tiff_adobe_deflate"}),
        ("tiff", rgba.convert("CMYK"), {"compression": "packbits"}),
        ("ppm", rgba.convert("RGB"), {}),
    )
    for number, (ending, image, options) in enumerate(made):
        (folder / str(number)).mkdir()
        image.save(folder / f"{number}/image.{ending}", **options)


def _read_image(folder: Path, out: Path) -> None:
    found = decode_at(_only(folder), squashed(8))
    assert (found.shape, found.dtype) == ((8, 8, 3), np.uint8), "an image of another shape or type"


# ---- the artifacts of a run

_RESULT = targets.device_files("board")[1]
_STUDENT, _TEACHER = (Places().network(name) for name in (STUDENT, TEACHER))
_CARDS = (_STUDENT.weights / paths.CARD, _TEACHER.weights / paths.CARD, _STUDENT.curves / paths.CURVES_CARD)
_CURVE = _STUDENT.curves / "plots/metrics/val_top1.tsv"
_MANIFEST = _STUDENT.export / paths.MANIFEST
# most of what is said of a run, and so damaged most often
_MOST = (_STUDENT.evaluation, paths.BENCHMARK, _MANIFEST) * 2


def _make_run(folder: Path) -> None:
    """All files of a run and of a device that it was measured on, by their paths in the repository."""
    (folder / "run").mkdir()
    with chdir(folder / "run"):
        run = runs.build_inputs().run
        write_run(run)
        for network in run.networks:
            for file in network.exported.files:  # the manifest has the hashes of the names
                path = network.places.export / file.name
                path.write_bytes(file.name.encode())
                path.with_suffix(".bin").touch()
        _RESULT.parent.mkdir(parents=True)
        runs.device_result().write(_RESULT)
        entry = {"result_sha256": _sha256(_RESULT.read_bytes()), "budget": runs.budget(max_size_mb=1.0).model_dump()}
        paths.TARGET_INDEX.write_bytes(as_json({"board": entry}))


def _listed(case: dict[Path, bytes], path: Path) -> None:
    """Have a damaged result in the index, or it would be known by its hash alone."""
    if path == _RESULT:
        index = json.loads(case[paths.TARGET_INDEX])
        index["board"]["result_sha256"] = _sha256(case[_RESULT])
        case[paths.TARGET_INDEX] = as_json(index)


def _read_report(folder: Path, out: Path) -> None:
    with chdir(folder):
        found = build_report(read_inputs(Run(students=[STUDENT]), runs.budget(), None))
        # as files are written
        json.dumps([found.summary(), found.metrics()], allow_nan=False, ensure_ascii=False).encode()
        if sum(zlib.crc32(path.read_bytes()) for path in Path().rglob("*.json")) % _PAGES == 0:
            render_page(found).encode()


def _read_tables(folder: Path, out: Path) -> None:
    with chdir(folder):
        run = Run()
        # each is read by itself: a damaged one is not what the next was made from
        run.energy_sha256 = str(run.network(STUDENT).card.lineage.energy)
        for table in (run.energy, run.energy_test):
            assert np.isfinite(table.columns["energy"]).all(), "an energy that is no number was let through"
            assert set(np.unique(table.columns["group"])) <= {0, 1, 2}, "a foreign group was let through"
            torch.from_numpy(table.columns["group"].copy())
            assert table.lineage.temperature > 0
        assert run.subset.columns["index"].max(initial=0) < run.data.counts.train, "a foreign image was let through"


def _read_manifest(folder: Path, out: Path) -> None:
    with chdir(folder):
        run = Run(students=[STUDENT])
        found = runnable_files(
            [run.students[0]], ["torch", "onnxruntime", "openvino"], "params.yaml: evaluate.runtimes"
        )
        assert {each.path.parent for each in found} == {_STUDENT.export}, "a file outside of its folder was let through"
        limits = {"timeout_seconds": 60, "process_seconds": 60}
        places = dict.fromkeys(("folder", "result", "samples"), out)
        make_plan(
            MeasurementRequest(found, _PARAMS.benchmark, "params.yaml", remote.Address(None), **places, **limits)
        ).to_json()


def _make_answers(folder: Path) -> None:
    for name in (STUDENT, TEACHER):
        (folder / name).mkdir()
        runs.answers(name, np.arange(30, dtype=np.int8) % 3).write(folder / name / paths.ANSWERS)


def _read_answers(folder: Path, out: Path) -> None:
    found = Answers.read(_only(folder))
    for answers in (found.network, *found.files.values()):
        for split in (answers.val, answers.test):
            assert len(split.correct) == len(split.energy) == len(split.uncertainty), "arrays of other lengths"
            assert split.correct.dtype == bool, "answers that are neither right nor wrong were let through"


def _make_networks(folder: Path) -> None:
    torch.manual_seed(0)
    for role in ("teacher", "student"):
        taught = {name: runs.sha(name) for name in ("teacher", "energy", "subset")} if role == "student" else {}
        settings = {"distill": {"loss": "kd"}, "heda": {"mix": "cutmix"}} if role == "student" else {}
        facts = card_facts(role, "resnet8", runs.data_card(), taught) | checkpoint_facts(0.5) | settings
        weights.write_network(folder / role, weights.build_network("resnet8", 10, role), facts)


def _hashed(case: dict[Path, bytes], path: Path) -> None:
    """The same for damaged weights, whose hash is in the card."""
    if path.name == weights.WEIGHTS:
        card = json.loads(case[Path(paths.CARD)])
        case[Path(paths.CARD)] = as_json(card | {"weights_sha256": _sha256(case[path])})


def _read_network(folder: Path, out: Path) -> None:
    network = weights.read_network(folder, NetworkCard.read(folder / paths.CARD))
    for value in network.state_dict().values():
        assert torch.isfinite(value).all(), "weights that are no numbers were let through"


# ---- checkpoints of other people, exported files, and bundles that carry them to devices


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))


def _make_weights(folder: Path) -> None:
    state = _network().state_dict()
    values = (state, {"model": state, "epoch": 3}, {"state_dict": {f"module.{k}": v for k, v in state.items()}})
    for number in range(12):
        (folder / str(number)).mkdir()
        if number < 6:
            value, zipped = values[number % 3], number < 3
            torch.save(value, folder / f"{number}/weights.pth", _use_new_zipfile_serialization=zipped)
        else:
            safetensors.torch.save_file(state, folder / f"{number}/weights.safetensors")


def _read_weights(folder: Path, out: Path) -> None:
    network = _network()
    before = state_hash(network)
    try:
        weights.load_pretrained(network, _only(folder))
    except BaseException:
        assert state_hash(network) == before, "a refused checkpoint changed the network"
        raise
    for value in network.state_dict().values():
        assert value.device.type == "cpu", "weights without values were let through"
        assert torch.isfinite(value).all(), "weights that are no numbers were let through"


def classifier(precision: str) -> onnx.ModelProto:
    """A convolution, a pool and a dense layer with our names, as the stage export makes them."""
    rng = np.random.default_rng(0)
    constants = {"kernel": rng.normal(size=(4, 3, 3, 3)), "dense": rng.normal(size=(4, 3))}
    nodes = [
        helper.make_node("Conv", ["input", "kernel"], ["conv"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["conv"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "dense"], ["logits"], name="gemm"),
    ]
    graph = helper.make_graph(
        nodes,
        "energykd",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if precision == "fp16":
        model = to_fp16(model)
    elif precision == "int8":
        images = rng.normal(size=(8, 3, 8, 8)).astype(np.float32)
        model = Quantizer(model, images, _PARAMS.export.int8).graph("onnxruntime").model
    return graphs.with_energy(model, 4.0)


def _make_graphs(folder: Path) -> None:
    for precision in ("fp32", "fp16", "int8"):
        (folder / precision).mkdir()
        metadata = {"labels": '["a", "b", "c"]', "licence": "CC0"}
        graphs.write(classifier(precision), folder / precision / f"{precision}.onnx", metadata)


def _read_graph(folder: Path, out: Path) -> None:
    path = _only(folder)
    assert set(check_structure(path, path.stem).shares) == {path.stem}, "another precision was let through"


def _open_session(folder: Path, out: Path) -> None:
    load("onnxruntime", (path := _only(folder)), precision=path.stem, threads=1)


def _make_bundle(folder: Path) -> None:
    model, whole = folder.with_name("student_fp32.onnx"), folder.with_name("bundle.pyz")
    onnx.save(classifier("fp32"), model)
    content = remote.BundleContent(
        plan=Plan((Variant(model.name, "onnxruntime", str(model), "fp32", "student", "student"),)),
        inputs={"student": np.zeros((4, 3, 8, 8), np.float32)},
        expected={
            "student": Expected(
                *(np.zeros(shape, kind) for shape, kind in (((4, 3), "f4"), (4, "f4"), (4, "i8"), (4, "i1")))
            )
        },
        card={"labels": ["a", "b", "c"], "lineage": {"data": "0" * 64}},
    )
    remote.write_bundle(whole, content)
    (folder / "bundle").mkdir()
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(folder / "bundle/bundle.pyz", "w") as target:
        # the program itself is most of the bytes and is not read; without it a change hits what is
        few = [name for name in archive.namelist() if name.startswith(bundles.DATA) or name == "__main__.py"]
        manifest = json.loads(archive.read(bundles.MANIFEST))
        manifest["files"] = {name: entry for name, entry in manifest["files"].items() if name in few}
        for name in few:
            target.writestr(name, as_json(manifest) if name == bundles.MANIFEST else archive.read(name))


def _read_bundle(folder: Path, out: Path) -> None:
    bundle = bundles.open_bundle(_only(folder))
    bundles.verify(bundle)
    plan = bundles.extract(bundle, out / "files")
    Plan.from_json(plan.to_json())
    json.dumps(dict(bundle.card))
    assert not any(path.is_symlink() for path in out.rglob("*")), "a link was extracted"
    for path in (path for variant in plan.variants for path in (variant.path, variant.inputs, variant.expected)):
        assert path is None or Path(path).resolve().is_relative_to(out.resolve()), "a file outside of its folder"
    assert not any((place / "owned").exists() for place in (out, out.parent)), "a file was written outside"


_PARAMS_FILE, _DEVICE_FILES = (
    partial(_make_settings, pattern=pattern) for pattern in ("params.yaml", "targets/examples/[!s]*.yaml")
)
_CHECKPOINTS = (".safetensors", ".pth", ".pt", ".bin", "")
_TABLES = damage(paths.ENERGY, paths.ENERGY, paths.ENERGY_TEST, paths.SUBSET)
_RESULTS = damage(*[_RESULT] * 5, paths.TARGET_INDEX, then=_listed)
_NETWORK = damage(*[Path(paths.CARD)] * 3, Path(weights.WEIGHTS), then=_hashed)
_OF_REPORT = "cards, manifest, evaluation.json, benchmark.json, curves"
TARGETS = {
    "params": Target("params.yaml", _PARAMS_FILE, lambda folder, _: load_params(_only(folder)), damage()),
    "device": Target("device.yaml", _DEVICE_FILES, lambda folder, _: targets.load_target(_only(folder)), damage()),
    "store": Target("data card, labels, pixels and manifest", _make_stores, _read_store, _damage_store),
    "energy": Target("tables of energies and of the images to mix", _make_run, _read_tables, _TABLES),
    "network": Target("card and weights of a network", _make_networks, _read_network, _NETWORK),
    "manifest": Target("manifest of exported files", _make_run, _read_manifest, damage(_MANIFEST)),
    "answers": Target("answers to every image", _make_answers, _read_answers, damage()),
    "report": Target(_OF_REPORT, _make_run, _read_report, damage(*_MOST, *_CARDS, _CURVE)),
    "result": Target("result of a device and the index", _make_run, _read_report, _RESULTS),
    "bundle": Target("bundle and its manifest", _make_bundle, _read_bundle, damage()),
    "onnx": Target("ONNX file, by what is in it", _make_graphs, _read_graph, damage()),
    "session": Target("ONNX file, by ONNX Runtime as a device opens it", _make_graphs, _open_session, damage()),
    "image": Target("image file", _make_images, _read_image, damage(endings=(".png", ".jpeg", ".tiff", ".webp"))),
    "weights": Target("foreign checkpoint", _make_weights, _read_weights, damage(endings=_CHECKPOINTS)),
}


if __name__ == "__main__":
    faulthandler.dump_traceback_later(_START_SECONDS, exit=True)  # until the first case has its own limit
    name, folder = sys.argv[1], Path(sys.argv[4])
    valid = TARGETS[name].valid(folder / "valid")
    tell_cases(lambda seed: judge_seed(name, seed, valid, folder / "case"), int(sys.argv[2]), int(sys.argv[3]))
