"""Bundles for devices."""

from __future__ import annotations

import hashlib
import io
import json
import random
import zipfile
from pathlib import Path

import numpy as np
import onnx

from bench.fuzz.judge import Target
from bench.fuzz.mutate import mutate_bytes, mutate_value
from bench.fuzz.readers.common import Json, as_json
from bench.fuzz.readers.graph import classifier
from pipeline.device.benchmark.plan import Plan, Variant
from pipeline.device.service.bundle import MANIFEST, extract, open_bundle, verify
from pipeline.remote import BundleContent, write_bundle


def _bundle_seeds(scratch: Path) -> Json:
    scratch.mkdir(parents=True, exist_ok=True)
    onnx.save(classifier("fp32"), scratch / "student_fp32.onnx")
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
            text = mutate_bytes(as_json(manifest), rng)
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
        info = zipfile.ZipInfo(MANIFEST, (1980, 1, 1, 0, 0, 0))  # the same bytes whenever it is written
        archive.writestr(info, as_json(manifest) if text is None else text)
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


TARGET = Target("bundle", "bundle and its manifest", _bundle_seeds, _write_bundle, _read_bundle)
