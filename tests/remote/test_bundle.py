from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.device.service.bundle import MANIFEST, BundleError, extract, open_bundle, verify
from pipeline.device.service.main import INSTALL
from pipeline.remote import BundleContent, RemoteError, write_bundle
from pipeline.runtimes import NAMES

# Interpreters that a version manager keeps beside the one that runs the tests.
OLD_PYTHONS = [
    path
    for version in ("2.7", "3.6", "3.8", "3.9")
    for path in sorted(Path(sys.base_prefix).parent.glob(f"{version}.*/bin/python{version}"))
]


def rewrite(
    path: Path,
    change: Callable[[str, bytes], bytes | None] = lambda name, content: content,
    manifest: Callable[[dict[str, Any]], object] = lambda manifest: None,
    extra: dict[str, bytes] | None = None,
) -> Path:
    """A copy of a bundle with other contents, for which the manifest is not recomputed."""
    copy = path.with_name("changed.pyz")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(copy, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == MANIFEST:
                values = json.loads(content)
                manifest(values)
                content = json.dumps(values).encode()
            changed = change(name, content)
            if changed is not None:
                target.writestr(name, changed)
        for name, content in (extra or {}).items():
            target.writestr(name, content)
    return copy


def named(field: str, path: str) -> Callable[[dict[str, Any]], None]:
    """Changes a manifest: the file that the plan's variant names."""
    return lambda manifest: manifest["plan"]["variants"][0].update({field: path})


def test_the_same_content_gives_the_same_bytes(content: BundleContent, tmp_path: Path) -> None:
    first = write_bundle(tmp_path / "a.pyz", content)
    for variant in content.plan.variants:
        os.utime(variant.path, (1, 1))
    second = write_bundle(tmp_path / "elsewhere/b.pyz", content)
    assert first == second == hashlib.sha256((tmp_path / "a.pyz").read_bytes()).hexdigest()
    other = dataclasses.replace(content, card={"labels": ["z"]})
    assert write_bundle(tmp_path / "c.pyz", other) != first


def test_a_bundle_holds_what_it_was_given(bundle: Path, content: BundleContent, tmp_path: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.card == content.card
    assert bundle.read_bytes().startswith(b"#!/usr/bin/env python3\n")
    plan = extract(opened, tmp_path / "out")
    assert [Path(variant.path).read_bytes() for variant in plan.variants] == [
        Path(variant.path).read_bytes() for variant in content.plan.variants
    ]
    [variant] = plan.variants
    np.testing.assert_array_equal(np.load(variant.inputs), content.inputs["tiny"])
    assert variant.expected is not None
    with np.load(variant.expected) as expected:
        for key in ("logits", "energy", "labels", "groups"):
            np.testing.assert_array_equal(expected[key], getattr(content.expected["tiny"], key))
    assert dataclasses.replace(plan, variants=content.plan.variants) == content.plan
    assert not (tmp_path / "out/pipeline").exists()
    code = {str(Path(name).parent) for name in opened.files if not name.startswith("bundle/")}
    rooms = {"pipeline/device/benchmark", "pipeline/device/machine", "pipeline/device/service"}
    assert code == {".", "pipeline", "pipeline/portable", "pipeline/device", "pipeline/runtimes", *rooms}
    assert [name for name in opened.files if Path(name).parent == Path("pipeline")] == ["pipeline/__init__.py"]


def test_variants_share_the_images_and_answers_of_their_network(content: BundleContent, tmp_path: Path) -> None:
    images, answers, first = content.inputs["tiny"], content.expected["tiny"], content.plan.variants[0]
    variants = (
        *(dataclasses.replace(first, name=name) for name in ("a", "b")),
        dataclasses.replace(first, name="c", inputs="Teacher_2-x", expected="Teacher_2-x"),
        dataclasses.replace(first, name="d", inputs="Teacher_2-x", expected=None),
    )
    given = dataclasses.replace(
        content,
        plan=dataclasses.replace(content.plan, variants=variants),
        inputs={"tiny": images, "Teacher_2-x": 2 * images},
        expected={"tiny": answers, "Teacher_2-x": dataclasses.replace(answers, logits=2 * answers.logits)},
    )
    sha256 = write_bundle(tmp_path / "b.pyz", given)
    backwards = {key: dict(reversed(getattr(given, key).items())) for key in ("inputs", "expected")}
    assert write_bundle(tmp_path / "c.pyz", dataclasses.replace(given, **backwards)) == sha256
    opened = open_bundle(tmp_path / "b.pyz")
    arrays = sorted(name for name in opened.files if name.startswith(("bundle/inputs/", "bundle/expected/")))
    assert arrays == [
        *("bundle/expected/Teacher_2-x.npz", "bundle/expected/tiny.npz"),
        *("bundle/inputs/Teacher_2-x.npy", "bundle/inputs/tiny.npy"),
    ]
    plan = extract(opened, tmp_path / "out")
    for variant, factor in zip(plan.variants, (1, 1, 2, 2), strict=True):
        np.testing.assert_array_equal(np.load(variant.inputs), factor * images)
        if variant.name == "d":
            assert variant.expected is None
        else:
            np.testing.assert_array_equal(np.load(variant.expected)["logits"], factor * answers.logits)


@pytest.mark.parametrize("field", ["inputs", "expected"])
def test_a_key_that_is_missing_or_no_plain_name_writes_nothing(
    content: BundleContent, field: str, tmp_path: Path
) -> None:
    variant = dataclasses.replace(content.plan.variants[0], **{field: "absent"})
    plan = dataclasses.replace(content.plan, variants=(variant,))
    with pytest.raises(KeyError, match="absent"):
        write_bundle(tmp_path / "b.pyz", dataclasses.replace(content, plan=plan))
    for key in ("", "../tiny", "a/b", "a.b", "-a", "a b", "é", "x" * 300):
        arrays = getattr(content, field)
        with pytest.raises(ValueError, match="may hold only letters"):
            write_bundle(tmp_path / "b.pyz", dataclasses.replace(content, **{field: arrays | {key: arrays["tiny"]}}))
    assert not list(tmp_path.iterdir())


def test_models_of_one_name_are_kept_apart(content: BundleContent, tmp_path: Path) -> None:
    first = content.plan.variants[0]
    second = dataclasses.replace(first, name="other")
    other = tmp_path / "other" / Path(first.path).name
    other.parent.mkdir()
    other.write_bytes(b"another model")
    plan = dataclasses.replace(content.plan, variants=(first, dataclasses.replace(second, path=str(other))))
    write_bundle(tmp_path / "b.pyz", dataclasses.replace(content, plan=plan))
    extracted = extract(open_bundle(tmp_path / "b.pyz"), tmp_path / "out")
    assert [Path(variant.path).read_bytes() for variant in extracted.variants] == [
        Path(first.path).read_bytes(),
        b"another model",
    ]


def test_an_openvino_file_takes_its_weights_along(content: BundleContent, tmp_path: Path) -> None:
    for suffix in (".xml", ".bin"):
        (tmp_path / f"net{suffix}").write_text(suffix)
    variant = dataclasses.replace(content.plan.variants[0], runtime="openvino", path=str(tmp_path / "net.xml"))
    given = dataclasses.replace(content, plan=dataclasses.replace(content.plan, variants=(variant,)))
    write_bundle(tmp_path / "b.pyz", given)
    extracted = Path(extract(open_bundle(tmp_path / "b.pyz"), tmp_path / "out").variants[0].path)
    assert (extracted.read_text(), extracted.with_suffix(".bin").read_text()) == (".xml", ".bin")
    (tmp_path / "net.bin").unlink()
    with pytest.raises(RemoteError, match=r"net\.bin does not exist"):
        write_bundle(tmp_path / "c.pyz", given)
    assert not (tmp_path / "c.pyz").exists()


@pytest.mark.parametrize(
    "name",
    ["bundle/inputs/tiny.npy", "bundle/expected/tiny.npz", "__main__.py", "pipeline/device/benchmark/plan.py"],
)
def test_one_changed_byte_is_found_wherever_it_is(bundle: Path, name: str, tmp_path: Path) -> None:
    def flip(found: str, content: bytes) -> bytes:
        return content[:-1] + bytes([content[-1] ^ 1]) if found == name else content

    changed = open_bundle(rewrite(bundle, flip))
    with pytest.raises(BundleError, match=rf"{name} in .* has another sha256 than in the manifest"):
        verify(changed)
    with pytest.raises(BundleError, match="has another sha256 than in the manifest"):
        extract(changed, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bytes_that_the_archive_itself_finds_damaged_are_one_sentence(bundle: Path) -> None:
    content = bytearray(bundle.read_bytes())
    content[len(content) // 2] ^= 1
    bundle.write_bytes(content)
    with pytest.raises(BundleError, match=r"copy( or write it| the bundle) again\.$"):
        verify(open_bundle(bundle))


@pytest.mark.parametrize("name", ["../evil", "/evil", "bundle/../../evil", "bundle//evil", "bundle/.evil", "C:\\evil"])
def test_names_that_lead_out_of_the_folder_are_refused(bundle: Path, name: str) -> None:
    entry = {"sha256": hashlib.sha256(b"x").hexdigest(), "size": 1}
    with pytest.raises(BundleError, match="may lead out of its folder"):
        open_bundle(rewrite(bundle, manifest=lambda values: values["files"].update({name: entry}), extra={name: b"x"}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"extra": {"pipeline/device/more.py": b""}}, "more.py, which is not in its manifest"),
        ({"change": lambda name, content: None if "inputs" in name else content}, r"lacks bundle/inputs/tiny\.npy"),
        ({"change": lambda name, content: content + b"x" if "inputs" in name else content}, "bytes, not"),
        ({"change": lambda name, content: None if name == MANIFEST else content}, "not a complete bundle"),
        ({"manifest": lambda values: values.update(schema=99)}, "schema 99"),
        ({"manifest": lambda values: values.pop("files")}, "cannot be read"),
        ({"manifest": named("path", "bundle/absent.onnx")}, r"lacks bundle/absent\.onnx, which its plan names"),
        ({"manifest": named("inputs", "bundle/absent.npy")}, r"lacks bundle/absent\.npy, which its plan names"),
        ({"manifest": named("expected", "bundle/absent.npz")}, r"lacks bundle/absent\.npz, which its plan names"),
        ({"manifest": lambda values: values["files"]["__main__.py"].update(size="1")}, "no hash and size"),
    ],
)
def test_an_archive_that_is_not_its_manifest_is_refused(bundle: Path, change: Any, words: str) -> None:
    with pytest.raises(BundleError, match=words):
        open_bundle(rewrite(bundle, **change))


def test_no_more_is_read_than_the_manifest_says(bundle: Path, tmp_path: Path) -> None:
    def bomb(name: str, content: bytes) -> bytes:
        return b"\0" * (50 << 20) if name == "bundle/inputs/tiny.npy" else content

    with pytest.raises(BundleError, match="52428800 bytes, not"):
        open_bundle(rewrite(bundle, bomb))


@pytest.mark.parametrize("length", [0, 100, -1000])
def test_a_file_cut_short_is_no_bundle(bundle: Path, length: int) -> None:
    bundle.write_bytes(bundle.read_bytes()[:length])
    with pytest.raises(BundleError, match="is not a complete bundle"):
        open_bundle(bundle)


def test_what_cannot_be_written_leaves_nothing_behind(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/bundle").write_text("a file in the way")
    with pytest.raises(OSError, match="bundle"):
        extract(open_bundle(bundle), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["bundle"]


def test_the_first_file_is_read_by_any_python(bundle: Path) -> None:
    with zipfile.ZipFile(bundle) as archive:
        source = archive.read("__main__.py").decode("ascii")
    tree = ast.parse(source, feature_version=(3, 4))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr | ast.AnnAssign | ast.ImportFrom)][1:]


@pytest.mark.parametrize("python", OLD_PYTHONS or [None], ids=lambda path: path.name if path else "none")
def test_an_old_python_refuses_in_a_sentence(bundle: Path, python: Path | None) -> None:
    if python is None:
        pytest.skip("no old Python beside this one")
    ended = subprocess.run([python, bundle], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    version = python.name.removeprefix("python")
    assert ended.stderr.startswith(f"error: Python {version} is too old for this bundle, which needs 3.10 or newer")
    assert ended.stderr.count("\n") == 1


def test_the_self_test_needs_neither_numpy_nor_a_runtime(
    bundle: Path,
    make_python: Callable[..., Path],
    tmp_path: Path,
) -> None:
    words = [make_python(), bundle, "--self-test", "--folder", tmp_path / "device"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    kinds = [line.partition(":")[0] for line in ended.stdout.splitlines()]
    assert kinds == ["ok", "ok", "ok", "missing", "missing"]
    assert "numpy is not installed" in ended.stdout
    assert "onnxruntime is not installed, but needed for 1 of 1 files" in ended.stdout
    assert not (tmp_path / "device").exists()


def test_the_self_test_of_a_damaged_bundle_is_one_sentence(bundle: Path) -> None:
    changed = rewrite(bundle, lambda name, content: content[::-1] if "inputs" in name else content)
    ended = subprocess.run([sys.executable, changed, "--self-test"], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: bundle/inputs/tiny.npy in ")


def test_the_self_test_knows_all_runtimes() -> None:
    assert sorted(INSTALL) == sorted(NAMES)
