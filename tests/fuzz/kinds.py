"""How a file is damaged, by its kind: within its format, so that more than its checksum or its first bytes is read."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from onnx import helper
from ruamel.yaml import YAML
from torch import nn

from pipeline.device.service.bundle import MANIFEST
from tests.fuzz.judge import Files
from tests.fuzz.mutate import NUMBERS, SHORT_TEXTS, TEXTS, as_json, mutate_bytes, mutate_value, odd_json, odd_value


def odd_yaml(content: bytes, rng: random.Random) -> bytes:
    changed = as_json(mutate_value(YAML(typ="safe", pure=True).load(content), rng)) if rng.randrange(2) else content
    return mutate_bytes(changed, rng) if changed == content or rng.randrange(3) == 0 else changed


_COLUMNS: tuple[Callable[[int], Any], ...] = (
    pa.nulls,
    lambda n: pa.array([None] * n, pa.float32()),
    lambda n: pa.array([float("nan")] * n, pa.float32()),
    lambda n: pa.array([7] * n, pa.int8()),
    lambda n: pa.array([0] * n, pa.timestamp("ns")),
    lambda n: pa.array([1] * n, pa.decimal128(5, 2)),
    lambda n: pa.array(["a"] * n).dictionary_encode(),
    *(lambda n, value=value: pa.array([value] * n) for value in ("x", [1], {"a": 1}, b"\xff", True, float("inf"))),
    *(lambda n, value=value: pa.array([value] * n, pa.int64()) for value in (-1, 2**62)),
)


def odd_parquet(content: bytes, rng: random.Random) -> bytes:
    """A table with a damaged byte, a foreign column, a missing or further one, fewer rows, or other metadata."""
    table = pq.read_table(io.BytesIO(content))
    columns, metadata = {name: table[name] for name in table.column_names}, dict(table.schema.metadata or {})
    name = rng.choice((*columns, rng.choice(SHORT_TEXTS[1:])))
    match rng.randrange(6 if metadata else 5):
        case 0 | 1:
            return mutate_bytes(content, rng)
        case 2:
            columns[name] = rng.choice(_COLUMNS)(len(table))
        case 3:
            columns.pop(name, None)
        case 4:
            most = rng.choice((0, 1))
            columns = {name: column[:most] for name, column in columns.items()}
        case _:
            key = rng.choice(list(metadata))
            metadata[key] = odd_json(metadata[key], rng)
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), buffer)
    return buffer.getvalue()


# type, whether in Fortran's order, and shape
_HEADERS = (
    *(("'|O'", False, "(6,)"), ("'<i8'", False, "(1000000000000,)"), ("'<i8'", False, "(-1,)")),
    *(("'|u1'", False, "(6, 0, 8, 3)"), ("[('a', '<i8')]", False, "(6,)"), ("'<M8[ns]'", False, "(6,)")),
    *(("'<i8'", True, "()"), ("'<i8'", False, "(99999999999999999999999,)"), ("{" * 900, False, "()")),
    ("__import__('os').system('touch owned')", False, "()"),
)


def odd_npy(content: bytes, rng: random.Random) -> bytes:
    array, buffer = np.load(io.BytesIO(content)), io.BytesIO()
    match rng.randrange(4):
        case 0:
            return mutate_bytes(content, rng, (b"|O", b"<f8", b"\x03\x00", b"'shape': ", b"(", b"9" * 30, b"-"))
        case 1:
            numbers = (np.float32, np.uint8, np.int8, np.bool_, np.complex64, "M8[s]")
            array = array.astype(rng.choice(("U3", object, *(() if array.dtype.kind == "U" else numbers))))
        case 2:
            shape = rng.choice(((-1,), (1, -1), (-1, 1), (1, 1, -1)))
            array = array.reshape(shape) if rng.randrange(2) else array[: rng.randrange(6)]
        case _:
            descr, fortran, shape = rng.choice(_HEADERS)
            header = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()
            return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + array.tobytes()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def odd_npz(content: bytes, rng: random.Random) -> bytes:
    """An archive of arrays with damaged bytes, an odd array, or a missing or further one."""
    if rng.randrange(3) == 0:
        return mutate_bytes(content, rng, (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"\xff" * 8, b"\x00" * 8))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name, buffer = rng.choice(list(members)), io.BytesIO()
    match rng.randrange(8):
        case 0:
            members.pop(name)
        case 1:
            members[rng.choice(("x", "keys.npy", "../owned.npy"))] = members[name]
        case _:
            members[name] = odd_npy(members[name], rng)
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def _png(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def odd_image(content: bytes, rng: random.Random) -> bytes:
    """A bomb, or damaged bytes; of a PNG within one chunk and with a right checksum, by which all else is found."""
    if rng.randrange(10) == 0:
        return _image_bomb(rng)
    if not content.startswith(b"\x89PNG") or rng.randrange(2):
        return mutate_bytes(content, rng)
    chunks, at = [], 8
    while at < len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += size + 12
    which = rng.randrange(len(chunks))
    kind, body = chunks[which]
    inner = kind == b"IDAT" and rng.randrange(2)
    chunks[which] = kind, zlib.compress(mutate_bytes(zlib.decompress(body), rng)) if inner else mutate_bytes(body, rng)
    if rng.randrange(4) == 0:
        kind = rng.choice((b"iCCP", b"zTXt", b"eXIf", b"acTL", b"tRNS", b"iTXt"))
        chunks.insert(1, (kind, mutate_bytes(b"a\0\0b", rng)))
    return _png(*chunks)


_SIDES = (8001, 10_000, 13_000, 20_000, 65_535, 2**31 - 1)


def _image_bomb(rng: random.Random) -> bytes:
    """A small file that says, or holds, far more pixels or bytes than it has."""
    width, height = rng.choice(_SIDES), rng.choice((1, 64, *_SIDES))
    match rng.randrange(6):
        case 0:
            depth, colour = rng.choice(((8, 2), (8, 0), (16, 6), (1, 0), (8, 3)))
            head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, rng.randrange(2))
            body = zlib.compress(b"\x00" * rng.choice((10, 1 << 20)))
            return _png((b"IHDR", head), (b"IDAT", body), (b"IEND", b""))
        case 1:
            head = f"P{rng.choice((5, 6, 4, 3))}\n{width} {height}\n{rng.choice((255, 65535))}\n".encode()
            return head + b"\x00" * 64
        case 2:
            head = struct.pack("<IiiHHIIiiII", 40, width % 2**31, height % 2**31, 1, 24, 0, 0, 0, 0, 0, 0)
            return b"BM" + struct.pack("<IHHI", 64, 0, 0, 54) + head + b"\x00" * 64
        case 3:
            head = b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 17, 8, height % 65536, width % 65536, 3)
            return head + b"\x01\x22\x00\x02\x11\x01\x03\x11\x01\xff\xd9"
        case 4:  # text that unpacks to 64 MiB beside an image of one pixel
            head = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
            text = (rng.choice((b"zTXt", b"iCCP")), b"a\0\0" + zlib.compress(b"x" * (1 << 26), 1))
            return _png((b"IHDR", head), text, (b"IDAT", zlib.compress(b"\0\0")), (b"IEND", b""))
        case _:  # directories of a TIFF that name each other, with sides of 32 bits
            tags = {256: (4, width), 257: (4, height), 258: (3, 8), 259: (3, rng.choice((1, 5, 8, 7))), 262: (3, 1)}
            tags |= {273: (4, 8), 277: (3, rng.choice((1, 3, 255))), 278: (4, height), 279: (4, 64)}
            entries = (struct.pack("<HHII", tag, kind, 1, value % 2**32) for tag, (kind, value) in tags.items())
            directory = struct.pack("<H", len(tags)) + b"".join(entries)
            return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", 8) + b"\x00" * 64


def odd_onnx(content: bytes, rng: random.Random) -> bytes:
    if rng.randrange(3):
        model = onnx.ModelProto.FromString(content)
        for _ in range(rng.randint(1, 3)):
            _change_graph(model, rng)
        content = model.SerializeToString()
    return mutate_bytes(content, rng) if rng.randrange(2) else content


def _change_graph(model: onnx.ModelProto, rng: random.Random) -> None:
    graph, inner = model.graph, onnx.GraphProto()
    inner.CopyFrom(graph)  # a graph copied into itself has no end
    node = rng.choice(graph.node or [graph.node.add()])
    tensor = rng.choice(graph.initializer or [graph.initializer.add()])
    text = rng.choice(TEXTS).encode("utf-8", "ignore").decode()
    number = max(-(2**63), min(2**63 - 1, int(rng.choice(NUMBERS))))
    kinds = (text, "Loop", "If", "Conv", "Gemm", "Reshape", "Scan", "MatMul", "Constant")
    location = rng.choice((text, "../../../../etc/passwd"))
    changes: tuple[Callable[[], object], ...] = (
        lambda: setattr(node, "op_type", rng.choice(kinds)),
        lambda: setattr(node, "domain", rng.choice((text, "com.microsoft", "ai.onnx.ml"))),
        lambda: node.ClearField("input"),
        lambda: node.ClearField("output"),
        lambda: node.input.append(rng.choice((text, "logits", "kernel", "energy"))),
        lambda: node.attribute.append(helper.make_attribute(rng.choice(("pads", "group", "axis", "x")), number)),
        lambda: node.attribute.add(name="body", type=onnx.AttributeProto.GRAPH, g=inner),
        lambda: graph.node.add().CopyFrom(node),
        lambda: graph.ClearField("output"),
        lambda: (tensor.ClearField("dims"), tensor.dims.extend([number] * rng.randint(0, 4))),
        lambda: setattr(tensor, "data_type", rng.choice((0, 7, 8, 16, 22, 99, 2**31 - 1))),
        lambda: setattr(tensor, "raw_data", tensor.raw_data[: rng.randrange(8)]),
        lambda: tensor.external_data.add(key="location", value=location) and setattr(tensor, "data_location", 1),
        lambda: model.metadata_props.add(key=rng.choice(("labels", text)), value=text),
        lambda: setattr(model.opset_import[0], "version", number),
        lambda: setattr(model, "ir_version", number),
    )
    rng.choice(changes)()


_PICKLES = (b"cos\nsystem\n", b"(X\x05\x00\x00\x00touchtR.", b"\x80\x04", b"\xff" * 8)


def odd_safetensors(content: bytes, rng: random.Random) -> bytes:
    (size,) = struct.unpack("<Q", content[:8])
    match rng.randrange(3):
        case 0:
            return mutate_bytes(content, rng, _PICKLES)
        case 1:
            return content[: size + 8] + b"\xff" * 8 + content[size + 16 :]  # no numbers
        case _:
            header = odd_json(content[8 : 8 + size], rng)
            return struct.pack("<Q", len(header)) + header + content[8 + size :]


def odd_torch(content: bytes, rng: random.Random) -> bytes:
    """Other bytes, or a state dict with something odd in it."""
    if rng.randrange(3) == 0:
        return mutate_bytes(content, rng, _PICKLES)
    state, buffer = torch.load(io.BytesIO(content), weights_only=True), io.BytesIO()
    state = state.get("model", state.get("state_dict", state))
    name = rng.choice(list(state))
    value = _odd_tensor(state[name], rng)
    wrapped, added = rng.choice(("model", "state_dict")), rng.choice((5, None, *SHORT_TEXTS))
    changed = rng.choice((value, {wrapped: value}, state | {added: value}, *[state | {name: value}] * 2))
    torch.save(changed, buffer, _use_new_zipfile_serialization=bool(rng.randrange(2)))
    return buffer.getvalue()


class _Code:
    """Runs a command where it is unpickled without restriction."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch owned",)


def _odd_tensor(tensor: torch.Tensor, rng: random.Random) -> Any:
    floats = tensor.is_floating_point()
    makers: tuple[Callable[[], Any], ...] = (
        lambda: torch.full_like(tensor, float("nan")) if floats else tensor,
        lambda: tensor.to(torch.complex64),
        tensor.to_sparse,
        lambda: tensor.to(torch.float8_e5m2) if floats else tensor,
        lambda: torch.empty(tensor.shape, device="meta"),
        lambda: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
        lambda: tensor.expand(1000, *tensor.shape),
        lambda: tensor[None],
        _Code,
        lambda: nn.Parameter(tensor.float()),
        lambda: odd_value(rng),
        lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    )
    return rng.choice(makers)()


_ESCAPES = (
    *("../owned", "/tmp/owned", "bundle/../../owned", "bundle\\..\\owned", "C:/owned", "bundle/", ""),  # noqa: S108
    *("bundle/models/\x00", "bundle//x", "bundle/./x", "bundle/.hidden", "bundle/models/é", "bundle/models/-rf"),
    *("bundle/models/" + "x" * 300, "bundle/inputs/student.npy/x", "Bundle/inputs/student.npy"),
)


def odd_bundle(content: bytes, rng: random.Random) -> bytes:
    """A bundle with another manifest, a hostile name, other contents, a compressed member or damaged bytes."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(members.pop(MANIFEST))
    what, name = rng.randrange(6), rng.choice(list(members))
    if what == 2:
        name = rng.choice(_ESCAPES)
        members[name] = b"owned"
        manifest["files"][name] = {"sha256": hashlib.sha256(b"owned").hexdigest(), "size": 5}
    elif what == 3:
        zeros = b"\x00" * rng.choice((1 << 20, 1 << 24))
        members[name] = zeros if rng.randrange(2) else mutate_bytes(members[name], rng)
        if rng.randrange(2):
            manifest["files"][name]["size"] = len(members[name])
    elif what in {0, 1}:
        part = rng.choice(("files", "plan", "card", None))
        manifest = mutate_value(manifest, rng) if part is None else manifest | {part: mutate_value(manifest[part], rng)}
    text = as_json(manifest)
    members[MANIFEST] = mutate_bytes(text, rng) if what == 0 and rng.randrange(2) else text
    buffer = io.BytesIO(b"#!/usr/bin/env python3\n")
    buffer.seek(0, io.SEEK_END)
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name or "x", (1980, 1, 1, 0, 0, 0))  # the same bytes whenever it is written
            info.filename = name
            if what == 4:
                info.compress_type = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
                info.external_attr = rng.choice((0o120777, 0o100644, 0o40755)) << 16  # a link, a file, a folder
            archive.writestr(info, data)
    content = buffer.getvalue()
    if what == 5 or (what == 4 and rng.randrange(2)):
        content = mutate_bytes(content, rng, (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"\xff" * 8, b"\x00" * 8))
    elif rng.randrange(8) == 0:  # the end of an archive is where its readers look first
        content = content[:-200] + mutate_bytes(content[-200:], rng)
    return content


_KINDS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": odd_json,
    ".npy": odd_npy,
    ".npz": odd_npz,
    ".onnx": odd_onnx,
    ".parquet": odd_parquet,
    **dict.fromkeys((".bmp", ".jpeg", ".png", ".ppm", ".tiff", ".webp"), odd_image),
    ".pth": odd_torch,
    ".pyz": odd_bundle,
    ".safetensors": odd_safetensors,
    ".yaml": odd_yaml,
}


def damage(
    *parts: Path, endings: tuple[str, ...] = (), then: Callable[[dict[Path, bytes], Path], object] | None = None
) -> Callable[[Files, random.Random], Files]:
    """All files, one of them damaged by its kind or, if there are others, rarely missing.

    Args:
        parts: those that may be damaged, some more often than others; all if none is given.
        endings: that a damaged file has in place of its own in some cases.
        then: called with the case and the path of what was damaged, to change more.
    """

    def damaged(valid: Files, rng: random.Random) -> Files:
        path = rng.choice(parts or tuple(valid))
        content = _KINDS.get(path.suffix, mutate_bytes)(valid[path], rng)
        case = {other: data for other, data in valid.items() if other != path}
        if endings and rng.randrange(8) == 0:
            path = path.with_suffix(rng.choice(endings))
        if rng.randrange(50) or not case:
            case[path] = content
            if then is not None:
                then(case, path)
        return case

    return damaged
