"""The readers of ours that meet other people's files, each with valid files and what is done to them."""

from __future__ import annotations

import hashlib
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from ruamel.yaml import YAML
from torch import nn

import pipeline
from bench.fuzz.judge import Target
from bench.fuzz.mutate import NUMBERS, TEXTS, mutate_bytes, mutate_value, odd_value
from pipeline.artifacts import LINEAGE_KEY, THRESHOLDS, check_lineage, read_energy, write_table
from pipeline.card import network_card
from pipeline.config import load_params
from pipeline.data.image_files import decode_at
from pipeline.data.loader import open_images
from pipeline.data.store import preprocessing, read_card, read_split
from pipeline.device.bundle import MANIFEST, extract, open_bundle, verify
from pipeline.device.plan import Plan, Variant
from pipeline.export.structure import check_structure
from pipeline.remote import BundleContent, write_bundle
from pipeline.report.devices import on_device, read_devices
from pipeline.report.page_devices import device_sections
from pipeline.target_config import load_target
from pipeline.weights import load_foreign, state_hash

ROOT = Path(pipeline.__file__).parents[1]
Json = dict[str, Any]


def _json(value: Any) -> bytes:
    """As Python writes it, NaN among it; a lone surrogate as an escape."""
    return json.dumps(value).encode()


# --- settings


def _yaml_seeds(*paths: Path) -> list[tuple[bytes, Any]]:
    """Each file without its comments, which take most of a reader's time, and what it holds."""
    seeds = []
    for path in paths:
        lines = [line.partition(" #")[0].rstrip() for line in path.read_text(encoding="utf-8").splitlines()]
        text = "\n".join(line for line in lines if line and not line.startswith("#")) + "\n"
        seeds.append((text.encode(), YAML(typ="safe", pure=True).load(text)))
    return seeds


def _write_yaml(rng: random.Random, seeds: list[tuple[bytes, Any]], folder: Path) -> None:
    text, value = rng.choice(seeds)
    if rng.randrange(2):
        text = _json(mutate_value(value, rng))
    if rng.randrange(3) == 0 or text == seeds[0][0]:
        text = mutate_bytes(text, rng)
    (folder / "file.yaml").write_bytes(text)


# --- the store of the data


def _store_seeds(scratch: Path) -> Json:
    scratch.mkdir(parents=True, exist_ok=True)
    card = {
        "schema": 1,
        "name": "digits",
        "storage": "packed",
        "class_names": ["zero", "one", "two"],
        "image_size": 8,
        "mean": [0.3, 0.3, 0.3],
        "std": [0.2, 0.2, 0.2],
        "counts": {"train": 6, "val": 6, "test": 6},
        "train_class_counts": [2, 2, 2],
        "source": "drawn",
        "licence": "CC0",
        "fingerprint": "0" * 64,
    }
    images = np.arange(6 * 8 * 8 * 3, dtype=np.uint8).reshape(6, 8, 8, 3)
    paths = []
    for index, image in enumerate(images):
        Image.fromarray(image).save(scratch / f"{index}.png")
        paths.append(str(scratch / f"{index}.png"))
    return {
        "card": card,
        "images": images,
        "labels": np.array([0, 1, 2, 0, 1, 2]),
        "files": {"path": paths, "sha256": ["0" * 64] * 6},
    }


def _npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


_HEADERS = (
    "{'descr': '|O', 'fortran_order': False, 'shape': (6,), }",
    "{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,), }",
    "{'descr': '<i8', 'fortran_order': False, 'shape': (-1,), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (6, 0, 8, 3), }",
    "{'descr': [('a', '<i8')], 'fortran_order': False, 'shape': (6,), }",
    "{'descr': '<M8[ns]', 'fortran_order': False, 'shape': (6,), }",
    "{'descr': '<i8', 'fortran_order': True, 'shape': (), }",
    "__import__('os').system('touch owned')",
    "{" * 900,
    "{'descr': '<i8', 'fortran_order': False, 'shape': (99999999999999999999999,), }",
)


def _odd_npy(array: Any, rng: random.Random) -> bytes:
    match rng.randrange(4):
        case 0:
            return mutate_bytes(_npy(array), rng, (b"|O", b"<f8", b"\x03\x00", b"'shape': ", b"(", b"9" * 30, b"-"))
        case 1:
            kind = rng.choice((np.float32, np.uint8, np.int8, np.bool_, np.complex64, "U3", "M8[s]", object))
            return _npy(array.astype(kind))
        case 2:
            shape = rng.choice(((-1,), (1, -1), (-1, 1), (2, 3, -1)))
            return _npy(array.reshape(shape) if rng.randrange(2) else array[: rng.randrange(6)])
        case _:
            header = rng.choice(_HEADERS).encode() + b"\n"
            return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + array.tobytes()


def _write_store(rng: random.Random, seeds: Json, folder: Path) -> None:
    packed = rng.randrange(2) == 0
    card = seeds["card"] | {"storage": "packed" if packed else "files"}
    what = rng.randrange(3)
    text = _json(mutate_value(card, rng) if what == 0 else card)
    (folder / "data.json").write_bytes(mutate_bytes(text, rng) if what == 0 and rng.randrange(3) == 0 else text)
    labels = _odd_npy(seeds["labels"], rng) if what == 1 else _npy(seeds["labels"])
    (folder / "train_labels.npy").write_bytes(labels)
    if packed:
        pixels = _odd_npy(seeds["images"], rng) if what == 2 else _npy(seeds["images"])
        (folder / "train_images.npy").write_bytes(pixels)
    else:
        table = _parquet(seeds["files"], None, rng, ("path", "sha256")) if what == 2 else None
        (folder / "train_files.parquet").write_bytes(table or _plain_parquet(seeds["files"], None))


def _read_store(folder: Path, seeds: Json) -> None:
    card = read_card(folder / "in")
    preprocessing(card)
    network_card("teacher", "resnet8", card, {})
    read_split(folder / "in", "train")
    images = open_images(folder / "in", "train", torch.device("cpu"))
    index = torch.arange(min(len(images), 2))
    found = images.centre(index)
    assert found.shape[1:] == (3, card["image_size"], card["image_size"]), "images of another size were let through"
    assert 0 <= int(images.labels.min()) <= int(images.labels.max()) < len(card["class_names"]), "a foreign label"


# --- tables


def _plain_parquet(columns: Mapping[str, Any], lineage: bytes | None) -> bytes:
    buffer = io.BytesIO()
    table = pa.table(dict(columns))
    pq.write_table(table if lineage is None else table.replace_schema_metadata({LINEAGE_KEY: lineage}), buffer)
    return buffer.getvalue()


_COLUMNS = (
    lambda n: pa.array(["x"] * n),
    lambda n: pa.array([None] * n, pa.float32()),
    lambda n: pa.array([[1]] * n),
    lambda n: pa.array([{"a": 1}] * n),
    lambda n: pa.array([float("nan")] * n, pa.float32()),
    lambda n: pa.array([float("inf")] * n, pa.float64()),
    lambda n: pa.array([-1] * n, pa.int64()),
    lambda n: pa.array([2**62] * n, pa.int64()),
    lambda n: pa.array([b"\xff"] * n),
    lambda n: pa.array([True] * n),
    lambda n: pa.array([0] * n, pa.timestamp("ns")),
    lambda n: pa.array(["a"] * n).dictionary_encode(),
    lambda n: pa.array([1] * n, pa.decimal128(5, 2)),
    pa.nulls,
    lambda n: pa.array([7] * n, pa.int8()),
)


def _parquet(columns: Mapping[str, Any], lineage: Any, rng: random.Random, names: tuple[str, ...]) -> bytes:
    """A table with a damaged byte, a foreign column, a missing or further one, or other metadata."""
    facts = None if lineage is None else _json(lineage)
    match rng.randrange(5):
        case 0 | 1:
            return mutate_bytes(_plain_parquet(columns, facts), rng)
        case 2:
            count = len(next(iter(columns.values())))
            name = rng.choice((*names, rng.choice(TEXTS[1:16])))
            return _plain_parquet({**columns, name: rng.choice(_COLUMNS)(count)}, facts)
        case 3:
            lost = rng.choice(names)
            most = rng.choice((0, 1))
            short = {key: value[:most] for key, value in columns.items()}
            return _plain_parquet(
                short if rng.randrange(2) else {key: value for key, value in columns.items() if key != lost}, facts
            )
        case _:
            text = _json(mutate_value(lineage, rng))
            return _plain_parquet(columns, mutate_bytes(text, rng) if rng.randrange(2) else text)


def _energy_seeds(scratch: Path) -> Json:
    scratch.mkdir(parents=True, exist_ok=True)
    count = 40
    energy = np.linspace(-12, -8, count, dtype=np.float32)
    columns = {
        "index": np.arange(count, dtype=np.int64),
        "label": np.arange(count, dtype=np.int64) % 3,
        "energy": energy,
        "confidence": np.full(count, 0.5, np.float32),
        "correct": np.ones(count, np.bool_),
        "group": np.repeat(np.array([0, 1, 1, 2], np.int8), 10),
    }
    lineage = {
        "temperature": 4.0,
        "low_threshold": -11.0,
        "high_threshold": -9.0,
        "data": "0" * 64,
        "teacher": "1" * 64,
        "split": "train",
    }
    write_table(scratch / "energy.parquet", columns, lineage)  # what is written here is read here
    read_energy(scratch / "energy.parquet")
    return {"columns": columns, "lineage": lineage}


def _write_energy(rng: random.Random, seeds: Json, folder: Path) -> None:
    content = _parquet(seeds["columns"], seeds["lineage"], rng, tuple(seeds["columns"]))
    (folder / "energy.parquet").write_bytes(content)


def _read_energy(folder: Path, seeds: Json) -> None:
    path = folder / "in/energy.parquet"
    columns, lineage = read_energy(path, *THRESHOLDS)
    check_lineage(path, lineage, {"data": "0" * 64, "teacher": "1" * 64})
    assert np.isfinite(columns["energy"]).all(), "an energy that is no number was let through"
    assert set(np.unique(columns["group"])) <= {0, 1, 2}, "a foreign group was let through"
    torch.from_numpy(columns["group"].copy())
    assert float(lineage["temperature"]) > 0


# --- results of devices

_SHA = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("student_fp32.onnx", "teacher_fp32.onnx")}


def _result_seeds(scratch: Path) -> Json:
    document = json.loads((Path(__file__).parent / "result.json").read_text(encoding="utf-8"))
    files = [
        {
            **{key: row[key] for key in ("name", "role", "format", "precision", "sha256", "size_bytes")},
            "batch": None,
        }
        for row in document["rows"]
    ]
    budget = dict.fromkeys(
        ("max_top1_drop", "max_high_energy_drop", "max_latency_p50_ms", "max_latency_p90_ms", "max_latency_p99_ms")
    )
    return {"document": document, "files": files, "budget": budget | {"max_size_mb": 1.0}}


def _write_result(rng: random.Random, seeds: Json, folder: Path) -> None:
    document = seeds["document"]
    if rng.randrange(8):  # a plot takes longer than all the rest, so most cases have none
        document = document | {"rows": [row | {"sustained": None} for row in document["rows"]]}
    text = _json(mutate_value(document, rng))
    if rng.randrange(4) == 0:
        text = mutate_bytes(text, rng)
    index: Any = {"board": {"result_sha256": hashlib.sha256(text).hexdigest(), "budget": seeds["budget"]}}
    if rng.randrange(6) == 0:
        index = mutate_value(index, rng)
    (folder / "targets/board").mkdir(parents=True)
    (folder / "targets/board/result.json").write_bytes(text)
    (folder / "targets/results.json").write_bytes(_json(index))


def _read_result(folder: Path, seeds: Json) -> None:
    devices = [on_device(device, seeds["files"]) for device in read_devices(folder / "in")]
    for device in devices:
        json.dumps([device.entry, device.rows], allow_nan=False, ensure_ascii=False).encode()  # as files are written
    device_sections(devices)


# --- bundles


def _bundle_seeds(scratch: Path) -> Json:
    scratch.mkdir(parents=True, exist_ok=True)
    onnx.save(_graph("fp32"), scratch / "student_fp32.onnx")
    zeros = np.zeros(4, np.float32)
    content = BundleContent(
        plan=Plan((Variant("student_fp32.onnx", "onnxruntime", str(scratch / "student_fp32.onnx"), "fp32"),), ""),
        inputs=np.zeros((4, 3, 8, 8), np.float32),
        logits=np.zeros((4, 3), np.float32),
        energy=zeros,
        labels=np.zeros(4, np.int64),
        groups=np.zeros(4, np.int8),
        card={"labels": ["a", "b", "c"], "lineage": {"data": "0" * 64}},
    )
    write_bundle(scratch / "bundle.pyz", content)
    with zipfile.ZipFile(scratch / "bundle.pyz") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    # the program itself is most of the bytes and is not read; without it a change hits what is
    few = {name: data for name, data in members.items() if name.startswith("bundle/") or name == "__main__.py"}
    manifest = json.loads(few.pop(MANIFEST))
    manifest["files"] = {name: manifest["files"][name] for name in few}
    return {"members": few, "manifest": manifest}


_ESCAPES = (
    "../owned",
    "/tmp/owned",  # noqa: S108  a name, never opened
    "bundle/../../owned",
    "bundle\\..\\owned",
    "C:/owned",
    "bundle/models/\x00",
    "bundle//x",
    "bundle/./x",
    "bundle/.hidden",
    "bundle/models/é",
    "bundle/",
    "",
    "bundle/models/" + "x" * 300,
    "bundle/models/-rf",
    "bundle/inputs.npy/x",
    "Bundle/inputs.npy",
)


def _write_bundle(rng: random.Random, seeds: Json, folder: Path) -> None:
    members, manifest = dict(seeds["members"]), json.loads(json.dumps(seeds["manifest"]))
    what = rng.randrange(6)
    text = None
    if what in {0, 1}:
        part = rng.choice(("files", "plan", "card", None))
        manifest = mutate_value(manifest, rng) if part is None else manifest | {part: mutate_value(manifest[part], rng)}
        if rng.randrange(4) == 0:
            text = mutate_bytes(_json(manifest), rng)
    elif what == 2:
        name = rng.choice(_ESCAPES)
        members[name] = b"owned"
        manifest["files"][name] = {"sha256": hashlib.sha256(b"owned").hexdigest(), "size": 5}
    elif what == 3:
        name = rng.choice(list(members))
        members[name] = (
            b"\x00" * rng.choice((1 << 20, 1 << 24)) if rng.randrange(2) else mutate_bytes(members[name], rng)
        )
        if rng.randrange(2):
            manifest["files"][name]["size"] = len(members[name])
    buffer = io.BytesIO(b"#!/usr/bin/env python3\n")
    buffer.seek(0, io.SEEK_END)
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name or "x", (1980, 1, 1, 0, 0, 0))
            info.filename = name
            if what == 4:
                info.compress_type = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
                info.external_attr = rng.choice((0o120777, 0o100644, 0o40755)) << 16  # a link, a file, a folder
            archive.writestr(info, data)
        archive.writestr(MANIFEST, _json(manifest) if text is None else text)
    content = buffer.getvalue()
    if what == 5 or (what == 4 and rng.randrange(2)):
        content = mutate_bytes(content, rng, (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"\xff" * 8, b"\x00" * 8))
    elif rng.randrange(8) == 0:  # the end of an archive is where its readers look first
        content = content[:-200] + mutate_bytes(content[-200:], rng)
    (folder / "bundle.pyz").write_bytes(content)


def _read_bundle(folder: Path, seeds: Json) -> None:
    bundle = open_bundle(folder / "in/bundle.pyz")
    verify(bundle)
    out = folder / "out/files"
    plan = extract(bundle, out)
    Plan.from_json(plan.to_json())
    json.dumps(dict(bundle.card))
    for path in (folder / "out").rglob("*"):
        assert not path.is_symlink(), "a link was extracted"
    for variant in plan.variants:
        assert Path(variant.path).resolve().is_relative_to(out.resolve()), "a model outside of its folder"
    assert not (folder / "owned").exists(), "a file was written outside"


# --- ONNX


def _graph(precision: str) -> onnx.ModelProto:
    """A convolution, a pool and a dense layer with our names, as int8 between quantisers."""
    rng = np.random.default_rng(0)
    kernel, dense = rng.normal(size=(4, 3, 3, 3)), rng.normal(size=(4, 3))
    kind = np.float16 if precision == "fp16" else np.float32
    constants = {"axes": np.array([1], np.int64), "shape": np.array([-1, 4], np.int64)}
    nodes = []

    def through(name: str) -> str:
        if precision != "int8":
            return name
        for op, source, target in (
            ("QuantizeLinear", name, f"{name}_q"),
            ("DequantizeLinear", f"{name}_q", f"{name}_dq"),
        ):
            nodes.append(helper.make_node(op, [source, "scale", "zero"], [target], name=f"{op}_{name}"))
        return f"{name}_dq"

    if precision == "int8":
        constants |= {"scale": np.float32(0.1), "zero": np.int8(0)}
    constants |= {"kernel": kernel.astype(kind), "dense": dense.astype(kind)}
    first = "input"
    if precision == "fp16":
        nodes.append(helper.make_node("Cast", ["input"], ["input16"], to=TensorProto.FLOAT16))
        first = "input16"
    inputs = [through(first), through("kernel")]
    nodes.append(helper.make_node("Conv", inputs, ["conv"], name="conv", pads=[1, 1, 1, 1]))
    nodes.append(helper.make_node("GlobalAveragePool", ["conv"], ["pooled"]))
    nodes.append(helper.make_node("Reshape", ["pooled", "shape"], ["flat"]))
    operands = [through("flat"), through("dense")]
    last = "logits16" if precision == "fp16" else "logits"
    nodes.append(helper.make_node("Gemm", operands, [last], name="gemm"))
    if precision == "fp16":
        nodes.append(helper.make_node("Cast", [last], ["logits"], to=TensorProto.FLOAT))
    nodes.append(helper.make_node("ReduceLogSumExp", ["logits", "axes"], ["energy"], keepdims=0))
    graph = helper.make_graph(
        nodes,
        "energykd",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("energy", TensorProto.FLOAT, ["batch"]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {"labels": '["a", "b", "c"]', "licence": "CC0"})
    return model


def _onnx_seeds(scratch: Path) -> list[tuple[str, onnx.ModelProto]]:
    seeds = [(precision, _graph(precision)) for precision in ("fp32", "fp16", "int8")]
    scratch.mkdir(parents=True, exist_ok=True)
    for precision, model in seeds:
        onnx.checker.check_model(model, full_check=True)
        (scratch / f"{precision}.onnx").write_bytes(model.SerializeToString())
        check_structure(scratch / f"{precision}.onnx", precision)  # a seed that is refused would test nothing
    return seeds


def _write_onnx(rng: random.Random, seeds: list[tuple[str, onnx.ModelProto]], folder: Path) -> None:
    precision, seed = rng.choice(seeds)
    model = onnx.ModelProto()
    model.CopyFrom(seed)
    if rng.randrange(3):
        for _ in range(rng.randint(1, 3)):
            _change_graph(model, rng)
    content = model.SerializeToString()
    if rng.randrange(2):
        content = mutate_bytes(content, rng)
    (folder / f"{precision}.onnx").write_bytes(content)


def _change_graph(model: onnx.ModelProto, rng: random.Random) -> None:  # noqa: PLR0912  one short case a change
    graph = model.graph
    node = rng.choice(graph.node) if graph.node else graph.node.add()
    tensor = rng.choice(graph.initializer) if graph.initializer else graph.initializer.add()
    text = rng.choice(TEXTS).encode("utf-8", "ignore").decode()
    number = max(-(2**63), min(2**63 - 1, int(rng.choice(NUMBERS))))
    match rng.randrange(16):
        case 0:
            node.op_type = rng.choice((text, "Loop", "If", "Conv", "Gemm", "Reshape", "Scan", "MatMul", "Constant"))
        case 1:
            node.domain = rng.choice((text, "com.microsoft", "ai.onnx.ml"))
        case 2:
            del node.input[:]
        case 3:
            del node.output[:]
        case 4:
            node.input.append(rng.choice((text, "logits", "kernel", "energy")))
        case 5:
            entry = model.metadata_props.add()
            entry.key, entry.value = rng.choice(("labels", text)), text
        case 6:
            del tensor.dims[:]
            tensor.dims.extend([number] * rng.randint(0, 4))
        case 7:
            tensor.data_type = rng.choice((0, 7, 8, 16, 22, 99, 2**31 - 1))
        case 8:
            tensor.data_location = TensorProto.EXTERNAL
            entry = tensor.external_data.add()
            entry.key, entry.value = "location", rng.choice((text, "../../../../etc/passwd"))
        case 9:
            tensor.raw_data = tensor.raw_data[: rng.randrange(8)]
        case 10:
            node.attribute.append(helper.make_attribute(rng.choice(("pads", "group", "axis", "x")), number))
        case 11:
            inner = node.attribute.add()
            inner.name, inner.type = "body", onnx.AttributeProto.GRAPH
            copied = onnx.GraphProto()  # a graph copied into itself has no end
            copied.CopyFrom(graph)
            inner.g.CopyFrom(copied)
        case 12:
            model.opset_import[0].version = number
        case 13:
            model.ir_version = number
        case 14:
            del graph.output[:]
        case _:
            copied_node = onnx.NodeProto()
            copied_node.CopyFrom(node)
            graph.node.append(copied_node)


def _read_onnx(folder: Path, seeds: Any) -> None:
    (path,) = (folder / "in").glob("*.onnx")
    structure = check_structure(path, path.stem)
    assert set(structure.shares) == {path.stem}, "another precision was let through"


# --- images


def _image_seeds(scratch: Path) -> list[tuple[str, bytes]]:
    ramp = np.arange(24 * 20 * 4, dtype=np.uint8).reshape(24, 20, 4)
    rgba = Image.fromarray(ramp)
    grey16 = Image.fromarray(ramp[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    made: list[tuple[str, Image.Image, Json]] = [
        ("JPEG", rgba.convert("RGB"), {"exif": exif.tobytes(), "quality": 80}),
        ("JPEG", rgba.convert("CMYK"), {"progressive": True}),
        ("JPEG", rgba.convert("L"), {}),
        ("PNG", rgba, {}),
        ("PNG", rgba.convert("P"), {"transparency": 0}),
        ("PNG", grey16, {}),
        ("PNG", rgba.convert("1"), {}),
        ("WEBP", rgba, {"lossless": True}),
        ("WEBP", rgba.convert("RGB"), {"quality": 50, "exif": exif.tobytes()}),
        ("BMP", rgba.convert("RGB"), {}),
        ("BMP", rgba.convert("P"), {}),
        ("TIFF", rgba.convert("RGB"), {"compression": "tiff_lzw"}),
        ("TIFF", grey16, {"compression": "tiff_adobe_deflate"}),
        ("TIFF", rgba.convert("CMYK"), {"compression": "packbits"}),
        ("TIFF", rgba.convert("F"), {}),
        ("PPM", rgba.convert("RGB"), {}),
    ]
    seeds = []
    for form, image, options in made:
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        seeds.append((form.lower(), buffer.getvalue()))
    scratch.mkdir(parents=True, exist_ok=True)
    for form, content in seeds:
        (scratch / f"seed.{form}").write_bytes(content)
        if form != "tiff":  # one of them holds floats, which are refused
            decode_at(scratch / f"seed.{form}", 8)
    return seeds


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _write_image(rng: random.Random, seeds: list[tuple[str, bytes]], folder: Path) -> None:
    form, content = rng.choice(seeds)
    if rng.randrange(10) == 0:
        form, content = _bomb(rng)
    elif form == "png" and rng.randrange(2):
        content = _odd_png(content, rng)
    else:
        content = mutate_bytes(content, rng)
    suffix = form if rng.randrange(8) else rng.choice(("png", "jpeg", "tiff", "webp"))  # an ending that lies
    (folder / f"image.{suffix}").write_bytes(content)


def _odd_png(content: bytes, rng: random.Random) -> bytes:
    """Changed within one chunk, with a right checksum: else nearly all changes are found by that alone."""
    chunks, at = [], 8
    while at < len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += size + 12
    which = rng.randrange(len(chunks))
    kind, body = chunks[which]
    if kind == b"IDAT" and rng.randrange(2):
        body = zlib.compress(mutate_bytes(zlib.decompress(body), rng))
    else:
        body = mutate_bytes(body, rng)
    chunks[which] = (kind, body)
    if rng.randrange(4) == 0:
        chunks.insert(
            1, (rng.choice((b"iCCP", b"zTXt", b"eXIf", b"acTL", b"tRNS", b"iTXt")), mutate_bytes(b"a\0\0b", rng))
        )
    return content[:8] + b"".join(_png_chunk(*chunk) for chunk in chunks)


_SIDES = (8001, 10_000, 13_000, 20_000, 65_535, 2**31 - 1)


def _bomb(rng: random.Random) -> tuple[str, bytes]:
    """A small file that says, or holds, far more pixels or bytes than it has."""
    width, height = rng.choice(_SIDES), rng.choice((1, 64, *_SIDES))
    match rng.randrange(6):
        case 0:
            depth, colour = rng.choice(((8, 2), (8, 0), (16, 6), (1, 0), (8, 3)))
            head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, rng.randrange(2))
            body = zlib.compress(b"\x00" * rng.choice((10, 1 << 20)))
            return "png", b"\x89PNG\r\n\x1a\n" + b"".join(
                _png_chunk(*part) for part in ((b"IHDR", head), (b"IDAT", body), (b"IEND", b""))
            )
        case 1:
            return (
                "ppm",
                f"P{rng.choice((5, 6, 4, 3))}\n{width} {height}\n{rng.choice((255, 65535))}\n".encode() + b"\x00" * 64,
            )
        case 2:
            header = struct.pack("<IiiHHIIiiII", 40, width % 2**31, height % 2**31, 1, 24, 0, 0, 0, 0, 0, 0)
            return "bmp", b"BM" + struct.pack("<IHHI", 64, 0, 0, 54) + header + b"\x00" * 64
        case 3:
            head = b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 17, 8, height % 65536, width % 65536, 3)
            return "jpeg", head + b"\x01\x22\x00\x02\x11\x01\x03\x11\x01\xff\xd9"
        case 4:  # text that unpacks to 64 MiB beside an image of one pixel
            head = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
            text = b"a\0\0" + zlib.compress(b"x" * (1 << 26), 1)
            return "png", b"\x89PNG\r\n\x1a\n" + b"".join(
                _png_chunk(*part)
                for part in (
                    (b"IHDR", head),
                    (rng.choice((b"zTXt", b"iCCP")), text),
                    (b"IDAT", zlib.compress(b"\0\0")),
                    (b"IEND", b""),
                )
            )
        case _:  # directories of a TIFF that name each other, with sides of 32 bits
            tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, rng.choice((1, 5, 8, 7)))]
            tags += [
                (262, 3, 1, 1),
                (273, 4, 1, 8),
                (277, 3, 1, rng.choice((1, 3, 255))),
                (278, 4, 1, height),
                (279, 4, 1, 64),
            ]
            directory = struct.pack("<H", len(tags)) + b"".join(
                struct.pack("<HHII", tag, kind, count, value % 2**32) for tag, kind, count, value in tags
            )
            return "tiff", b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", 8) + b"\x00" * 64


def _read_image(folder: Path, seeds: Any) -> None:
    (path,) = (folder / "in").iterdir()
    found = decode_at(path, 8)
    assert found.shape == (8, 8, 3), "an image of another shape"
    assert found.dtype == np.uint8, "an image of another type"


# --- weights


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))


class _Code:
    """Runs a command where it is unpickled without restriction."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os  # noqa: PLC0415  only for this attack

        return os.system, ("touch owned",)


def _weight_seeds(scratch: Path) -> Json:
    network = _network()
    state = network.state_dict()
    files = [("safetensors", safetensors.torch.save(state))]
    for value in (state, {"model": state, "epoch": 3}, {"state_dict": {f"module.{k}": v for k, v in state.items()}}):
        for zipped in (True, False):
            buffer = io.BytesIO()
            torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
            files.append(("pth", buffer.getvalue()))
    scratch.mkdir(parents=True, exist_ok=True)
    for suffix, content in files:
        (scratch / f"seed.{suffix}").write_bytes(content)
        load_foreign(_network(), scratch / f"seed.{suffix}")
    return {"state": state, "files": files, "hash": state_hash(network)}


def _write_weights(rng: random.Random, seeds: Json, folder: Path) -> None:
    suffix, content = rng.choice(seeds["files"]) if rng.randrange(2) else seeds["files"][0]
    what = rng.randrange(4)
    if what == 0:
        state = _odd_state(dict(seeds["state"]), rng)
        buffer = io.BytesIO()
        torch.save(state, buffer, _use_new_zipfile_serialization=bool(rng.randrange(2)))
        suffix, content = "pth", buffer.getvalue()
    elif what == 1 and suffix == "safetensors":
        (size,) = struct.unpack("<Q", content[:8])
        header = mutate_value(json.loads(content[8 : 8 + size]), rng)
        text = _json(header) if rng.randrange(3) else mutate_bytes(_json(header), rng)
        content = struct.pack("<Q", len(text)) + text + content[8 + size :]
    else:
        content = mutate_bytes(
            content, rng, (b"cos\nsystem\n", b"(X\x05\x00\x00\x00touchtR.", b"\x80\x04", b"\xff" * 8)
        )
    if rng.randrange(10) == 0:
        suffix = rng.choice(("safetensors", "pth", "pt", "bin", ""))
    (folder / f"weights.{suffix}").write_bytes(content)


def _odd_state(state: Json, rng: random.Random) -> Any:
    name = rng.choice(list(state))
    makers = (
        lambda: torch.full_like(state[name], float("nan")) if state[name].is_floating_point() else state[name],
        lambda: state[name].to(torch.complex64),
        state[name].to_sparse,
        lambda: state[name].to(torch.float8_e5m2) if state[name].is_floating_point() else state[name],
        lambda: torch.empty(state[name].shape, device="meta"),
        lambda: torch.quantize_per_tensor(state[name].float(), 0.1, 0, torch.qint8),
        lambda: state[name].expand(1000, *state[name].shape),
        lambda: state[name][None],
        _Code,
        lambda: nn.Parameter(state[name].float()),
        lambda: odd_value(rng),
        lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    )
    value = rng.choice(makers)()
    match rng.randrange(5):
        case 0:
            return value
        case 1:
            return {rng.choice(("model", "state_dict")): value}
        case 2:
            return state | {rng.choice((5, None, *TEXTS[:16])): value}
        case _:
            return state | {name: value}


def _read_weights(folder: Path, seeds: Json) -> None:
    (path,) = (folder / "in").iterdir()
    network = _network()
    try:
        load_foreign(network, path)
    except BaseException:
        assert state_hash(network) == seeds["hash"], "a refused checkpoint changed the network"
        raise
    for value in network.state_dict().values():
        assert value.device.type == "cpu", "weights without values were let through"
        assert torch.isfinite(value).all(), "weights that are no numbers were let through"


TARGETS = {
    target.name: target
    for target in (
        Target(
            "params",
            "params.yaml",
            lambda _: _yaml_seeds(ROOT / "params.yaml"),
            _write_yaml,
            lambda folder, _: void(load_params(folder / "in/file.yaml")),
        ),
        Target(
            "device",
            "device.yaml",
            lambda _: _yaml_seeds(*sorted((ROOT / "targets/examples").glob("[!s]*.yaml"))),
            _write_yaml,
            lambda folder, _: void(load_target(folder / "in/file.yaml")),
        ),
        Target("store", "data card, labels, pixels and manifest", _store_seeds, _write_store, _read_store),
        Target("energy", "energy table", _energy_seeds, _write_energy, _read_energy),
        Target("result", "result of a device and the index", _result_seeds, _write_result, _read_result),
        Target("bundle", "bundle and its manifest", _bundle_seeds, _write_bundle, _read_bundle),
        Target("onnx", "ONNX file", _onnx_seeds, _write_onnx, _read_onnx),
        Target("image", "image file", _image_seeds, _write_image, _read_image),
        Target("weights", "foreign checkpoint", _weight_seeds, _write_weights, _read_weights),
    )
}


def void(value: object) -> None:
    """For a reader whose answer is not looked at."""
