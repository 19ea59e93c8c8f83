"""The JSON files that stages hand to each other: cards of trained networks and the manifest of exported files.

Each is read as far as its readers take it for granted, and may hold more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, model_validator

from pipeline.config import Precision, checked
from pipeline.store.tables import read_json

CARD = "card.json"

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=10**18)]
Number = Annotated[float, Field(ge=0, le=1e30)]


def printable(text: str) -> str:
    """A validator of text that is shown."""
    if not text.isprintable():
        raise ValueError("it has characters that cannot be shown")
    return text


Word = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(printable)]


class _OfData(BaseModel):
    data: Hash


class _OfTeacher(_OfData):
    teacher: Hash
    energy: Hash
    subset: Hash


class _Card(BaseModel):
    role: Literal["teacher", "student"]
    network: Word
    num_classes: Annotated[int, Field(ge=1)]
    class_names: list[str]
    image_size: Annotated[int, Field(ge=1, le=1024)]
    parameters: Count
    macs: Count
    source: Literal["trained", "checkpoint"]
    seed: int | None
    epochs: Count | None
    val_top1: Share
    weights_sha256: Hash
    lineage: _OfData

    @model_validator(mode="after")
    def _one_class_each(self) -> Self:
        # a network of so many outputs is built before its weights show that it has others
        if self.num_classes != len(self.class_names):
            raise ValueError(f"num_classes is not the {len(self.class_names)} of class_names")
        return self


class _StudentCard(_Card):
    distill: dict[str, Any]
    heda: dict[str, Any]
    lineage: _OfTeacher


def read_network_card(folder: Path) -> dict[str, Any]:
    """The card of the network in ``folder``.

    Raises:
        DataError: it is missing, damaged or not one.
    """
    path = folder / CARD
    card = read_json(path)
    student = isinstance(card, dict) and card.get("role") == "student"
    return checked(_StudentCard if student else _Card, card, path, "run `dvc repro` to make it anew")


def _of_its_folder(name: str) -> str:
    if not name or Path(name).name != name or not name.isprintable():
        raise ValueError("it is no file of its folder")
    return name


class _Parity(BaseModel):
    runtime: Literal["torch", "onnxruntime", "openvino"]
    executed_precision: Word
    images: Count
    max_abs: Number
    mean_abs: Number
    cosine: Annotated[float, Field(ge=-1.01, le=1.01)]
    top1_agreement: Share
    largest_flipped_margin: Number | None
    energy_max_abs: Number


class _File(BaseModel):
    name: Annotated[str, Field(max_length=200), AfterValidator(_of_its_folder)]
    role: Literal["teacher", "student"]
    format: Literal["torch", "onnx", "openvino"]
    precision: Precision
    sha256: Hash
    size_bytes: Annotated[int, Field(ge=1, le=10**15)]
    batch: Annotated[int, Field(ge=1, le=65536)] | None
    float_nodes: list[Word] = []
    parity: _Parity | None = None


class _Exported(BaseModel):
    data: Hash
    teacher: Hash
    energy: Hash
    student: Hash


class _Manifest(BaseModel):
    lineage: _Exported
    opset: Annotated[int, Field(ge=1, le=1000)]
    files: Annotated[list[_File], Field(min_length=1)]

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        names = [file.name for file in self.files]
        if len(set(names)) != len(names):
            raise ValueError("a file is listed twice")
        return self


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of exported files.

    Raises:
        DataError: it is missing, damaged or not one, or names a file outside of its folder.
    """
    return checked(_Manifest, read_json(path), path, "run `dvc repro export` to make it anew")
