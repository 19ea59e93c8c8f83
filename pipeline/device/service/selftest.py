"""What can be said of a bundle and a device before anything is measured; needs neither numpy nor a runtime."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pipeline.device.errors import DeviceError
from pipeline.device.service.bundle import open_bundle, verify

# The module that each runtime is, and how it is installed.
MODULES = {
    "torch": ("torch", "pip install torch"),
    "onnxruntime": ("onnxruntime", "pip install onnxruntime"),
    "openvino": ("openvino", "pip install openvino"),
    "tensorrt": ("tensorrt", "NVIDIA's packages for this device"),
}
_ROOM = 32 << 20


def self_test(archive: Path, folder: Path) -> Iterator[tuple[bool, str]]:
    """One sentence on each thing that a run needs, and whether it is there.

    Args:
        folder: in which a run would extract the bundle.

    Raises:
        BundleError: the bundle is damaged.
    """
    bundle = open_bundle(archive)
    verify(bundle)
    size = sum(entry.size for entry in bundle.files.values())
    yield True, f"all {len(bundle.files)} files of the bundle have the sha256 of its manifest ({size / 1e6:.1f} MB)."
    yield True, f"Python {'.'.join(map(str, sys.version_info[:3]))} is 3.10 or newer."
    needed = sum(entry.size for entry in bundle.data.values()) + _ROOM
    free = free_bytes(folder)
    yield free >= needed, f"{folder} has {free / 1e6:.0f} MB free, and {needed / 1e6:.0f} MB are needed."
    yield _module("numpy", "pip install numpy", "for everything")
    for runtime, count in sorted(Counter(variant.runtime for variant in bundle.plan.variants).items()):
        module, install = MODULES.get(runtime, (runtime, "its own instructions"))
        yield _module(module, install, f"for {count} of {len(bundle.plan.variants)} files")


def _module(name: str, install: str, purpose: str) -> tuple[bool, str]:
    if importable(name):
        return True, f"{name} is installed, {purpose}; it was not imported."
    return False, f"{name} is not installed, but needed {purpose}; install it with {install}."


def importable(name: str) -> bool:
    """Whether a module is there, without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def free_bytes(folder: Path) -> int:
    """Space for this user in a folder that need not exist yet."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free


def report(archive: Path, folder: Path) -> bool:
    """Write the sentences to standard output; false, after one on standard error, if the bundle is damaged."""
    try:
        for good, sentence in self_test(archive, folder):
            sys.stdout.write(f"{'ok' if good else 'missing'}: {sentence}\n")
    except DeviceError as error:
        sys.stderr.write(f"error: {error}\n")
        return False
    return True
