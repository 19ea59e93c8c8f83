"""The real Python bindings of TensorRT, without the libraries behind them.

The bindings are an ordinary wheel that imports once the few functions it links to exist. Shared libraries of functions
that return null are enough to read every class, member and signature; nothing can be built or run with them.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SYMBOLS = {
    "nvinfer": (
        *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL"),
        *("getBuilderPluginRegistry", "getPluginRegistry"),
    ),
    "nvonnxparser": (
        *("createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getNvOnnxParserVersion"),
    ),
    "nvinfer_plugin": ("initLibNvInferPlugins",),
}
SYMBOLS_RTX = {"tensorrt_rtx": SYMBOLS["nvinfer"], "tensorrt_onnxparser_rtx": SYMBOLS["nvonnxparser"]}
# Members by class, and those of the module itself under "".
_DESCRIBE = """
import importlib, json, sys

module = importlib.import_module(sys.argv[1])

def describe(owner, name):
    member = getattr(owner, name)
    if isinstance(member, property):
        return {"kind": "property", "writable": member.fset is not None, "doc": member.fget.__doc__ or ""}
    if isinstance(member, type):
        return {"kind": "class"}
    if callable(member):
        return {"kind": "method", "doc": member.__doc__ or ""}
    try:
        return {"kind": "value", "number": int(member)}
    except (TypeError, ValueError):
        return {"kind": "value", "number": None}

def members(owner):
    wanted = ("__init__", "__members__", "__version__")
    return {name: describe(owner, name) for name in dir(owner) if name in wanted or not name.startswith("_")}

found = {"": members(module)}
found.update({name: members(getattr(module, name)) for name, kind in found[""].items() if kind["kind"] == "class"})
json.dump({"version": module.__version__, "members": found}, sys.stdout)
"""


class MissingPartError(Exception):
    """A part that the bindings need to be imported is missing here; the message names it."""


@dataclass(frozen=True)
class Bindings:
    """One version of the bindings.

    Attributes:
        module: to import.
        version: as the module gives it.
        members: class -> member -> description; the module's own members under "".
        environment: of a process that can import the module.
    """

    module: str
    version: str
    members: dict[str, dict[str, Any]]
    environment: dict[str, str]

    def signatures(self, owner: str, name: str) -> list[inspect.Signature]:
        """Of each overload of a method, without self, as the docstring gives them."""
        doc = self.members[owner][name]["doc"]
        return [_signature(found) for found in re.findall(rf"^(?:\d+\. )?{name}\((.*)\) -> .*$", doc, re.MULTILINE)]

    def result_class(self, owner: str, name: str) -> str | None:
        """The class that a method or property returns; None where the docstring names none of TensorRT's."""
        doc = self.members[owner][name].get("doc", "")
        found = re.search(r"\) -> (?:tensorrt\w*\.tensorrt\w*\.|nvonnxparser::I|nvinfer1::)(\w+)", doc)
        return found.group(1) if found else None


def accepts(signature: inspect.Signature, *arguments: Any, **keywords: Any) -> bool:
    try:
        signature.bind(*arguments, **keywords)
    except TypeError:
        return False
    return True


def read_bindings(requirement: str, folder: Path) -> Bindings:
    """Install one version of the bindings into a folder, with stub libraries, and describe it.

    Raises:
        MissingPartError: no C compiler, no pip, no package registry, or no wheel for this Python and machine.
    """
    major, *_ = requirement.partition("==")[2].split(".")
    libraries, packages = folder / "lib", folder / "packages"
    libraries.mkdir()
    for_rtx = "rtx" in requirement
    _compile_stubs(libraries, SYMBOLS_RTX if for_rtx else SYMBOLS, major)
    install(packages, requirement)
    environment = os.environ | {"LD_LIBRARY_PATH": str(libraries), "PYTHONPATH": str(packages)}
    module = "tensorrt_rtx_bindings" if for_rtx else "tensorrt_bindings"
    command = [sys.executable, "-c", _DESCRIBE, module]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return Bindings(module, environment=environment, **json.loads(result.stdout))


def _compile_stubs(folder: Path, symbols: Mapping[str, Sequence[str]], major: str) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise MissingPartError("no C compiler (cc or gcc) for the stub libraries")
    for library, names in symbols.items():
        source = folder / f"{library}.c"
        source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in names), encoding="ascii")
        target = folder / f"lib{library}.so.{major}"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", target, source], check=True)


def install(folder: Path, *requirements: str) -> None:
    """Install wheels into a folder, without what they depend on. Raises MissingPartError: they cannot be had here."""
    requirement = requirements[0]
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--only-binary", ":all:", "--target", str(folder)]
    command += ["--quiet", "--disable-pip-version-check", "--no-input", "--retries", "1", "--timeout", "20"]
    result = subprocess.run([*command, *requirements], capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return
    # asked in the other process: in this one, looking for pip makes setuptools give up its distutils for good
    if "No module named pip" in result.stderr:
        raise MissingPartError("no pip in this environment to fetch the bindings with")
    # pip says "no matching distribution" in both cases; only without a registry it tried again.
    if re.search("Retrying|connection|timed out", result.stderr, re.IGNORECASE):
        raise MissingPartError(f"the package registry cannot be reached for {requirement}")
    if "No matching distribution" in result.stderr:
        version = ".".join(map(str, sys.version_info[:2]))
        raise MissingPartError(f"the package registry has no wheel of {requirement} for Python {version} here")
    raise RuntimeError(f"pip cannot install {requirement}: {result.stderr}")


def _signature(parameters: str) -> inspect.Signature:
    """From the text between the parentheses, such as ``self: Builder, flags: int = 0``."""
    parts, depth = [""], 0
    for character in parameters.replace("->", ""):
        depth += (character in "([{<") - (character in ")]}>")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    found = [
        inspect.Parameter(
            part.partition(":")[0].strip(), kind, default=None if " = " in part else inspect.Parameter.empty
        )
        for part in parts
        if part.strip()
    ]
    return inspect.Signature([parameter for parameter in found if parameter.name != "self"])
