"""In which precision the layers of a TensorRT engine compute, as its inspector or its builder's log lists them.

A layer is a mapping with the inspector's keys: ``Name``, ``LayerType``, ``TacticName``, ``ParameterType``, ``Inputs``.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pipeline import runtimes

_COMPUTE = re.compile(r"conv|gemm|matmul|matrixmultiply|fullyconnected|correlation|attention|mha|xmma", re.IGNORECASE)
_NOT_COMPUTE = re.compile(r"reformat|shuffle|constant|copy|noop|signal|wait", re.IGNORECASE)
# The compiler in TensorRT names what it has fused by the first letters of each operator: __myl_CorrMulAdd_myl0_8.
_FUSED = re.compile(r"^__myl_([A-Za-z]+)")
_FUSED_COMPUTE = frozenset({"Corr", "Conv", "Fc", "Gemm", "Matm", "Mm"})
# Kinds of layers that hold a part of the network, of which type and tactic do not say what it computes.
_OPAQUE = re.compile(r"fusion|myelin|foreignnode", re.IGNORECASE)
# "Format/Datatype" is "Half" or "Float" in new versions, and a text such as "Row major linear FP16 format" in old ones.
_DATATYPE = re.compile(r"\b(Int8|FP16|Half|BF16|BFloat16|FP32|Float)\b", re.IGNORECASE)
_LONG_NAMES = {"fp16": "half", "fp32": "float"}
_LOGGED = re.compile(
    r"Name: (?P<Name>.*?), LayerType: (?P<LayerType>\w+), Inputs: \[(?P<Inputs>.*?)\], (?:Constants: \[.*?\], )?"
    r"Outputs: \[(?P<Outputs>.*?)\], TacticName: (?P<TacticName>[^,]*),"
)
_LOGGED_TENSOR = re.compile(r"Name: ([^,]*), .*?Datatype: (\w+)")


@dataclass(frozen=True)
class Judged:
    """The layers of an engine.

    Attributes:
        count: of all layers, also of those that only move or scale values.
        compute: name and precision of each layer with a convolution or a matrix product, ``UNKNOWN`` if the type of its
            first input is not said.
        unclear: names of the layers that may hold such a product.
    """

    count: int
    compute: list[tuple[str, str]]
    unclear: list[str]

    @property
    def precisions(self) -> list[str]:
        """Of the layers with a convolution or a matrix product."""
        return [precision for _, precision in self.compute]


def judge(layers: Iterable[Any]) -> Judged:
    """Tell the layers that compute by what they are and in which precision.

    Args:
        layers: mappings as above; an engine with less than detailed verbosity lists names alone, which are unclear.
    """
    listed, compute, unclear = list(layers), [], []
    for layer in listed:
        if not isinstance(layer, dict):
            unclear.append(str(layer))
        elif (computes := _computes(layer)) is None:
            unclear.append(str(layer.get("Name")))
        elif computes:
            compute.append((str(layer.get("Name")), _precision(layer)))
    return Judged(len(listed), compute, unclear)


def logged_layers(log: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The layers of the engine that a builder's verbose messages list, one on a line; none of TensorRT before 11."""
    for line in "\n".join(log).splitlines():
        if found := _LOGGED.search(line):
            tensors = {
                key: [{"Name": name, "Datatype": kind} for name, kind in _LOGGED_TENSOR.findall(found[key])]
                for key in ("Inputs", "Outputs")
            }
            yield found.groupdict() | tensors


def _computes(layer: dict[str, Any]) -> bool | None:
    """Whether a layer holds a convolution or a matrix product; None if that cannot be told."""
    name, kind = str(layer.get("Name", "")), str(layer.get("LayerType", ""))
    if _NOT_COMPUTE.search(kind):
        return False
    if _COMPUTE.search(" ".join((kind, *(str(layer.get(key, "")) for key in ("ParameterType", "TacticName"))))):
        return True
    if fused := _FUSED.match(name):
        operators = re.findall(r"[A-Z][a-z]*", fused[1])
        if _FUSED_COMPUTE & set(operators):
            return True
    return None if _OPAQUE.search(f"{kind} {name}") else False


def _precision(layer: dict[str, Any]) -> str:
    inputs = layer.get("Inputs") or [{}]
    match = _DATATYPE.search(str(inputs[0].get("Format/Datatype", inputs[0].get("Datatype", ""))))
    if match is None:
        return runtimes.UNKNOWN
    name = match.group().lower()
    return runtimes.precision_of(_LONG_NAMES.get(name, name))
