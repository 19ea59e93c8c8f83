"""The JSON files that stages hand to each other: one model for each, which writes it and reads it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pipeline.config import BudgetParams, DataParams, Interpolation, Precision, ResizeName, RuntimeName, explain
from pipeline.errors import DataError, LineageError
from pipeline.portable.accuracy import GROUPS, Accuracy
from pipeline.portable.documents import MeasuredRow
from pipeline.portable.text import brief
from pipeline.store.json_files import parse_json, read_json, write_json

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=10**18)]
Change = Annotated[float, Field(ge=-1, le=1)]  # of a share
Distance = Annotated[float, Field(ge=0, le=1e30)]
Role = Literal["teacher", "student"]
Shape = tuple[int, int, int]  # of an image: channels, height, width
ONE_RUN = "run `dvc repro` so that both come from one run"
MAKERS = {"teacher": "train_teacher", "student": "distill"}  # the stage of each role


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it has characters that cannot be shown")
    return text


def _plain_name(name: str) -> str:
    if name in ("", "..") or Path(name).name != name or not name.isprintable():
        raise ValueError("it is not a plain file name")
    return name


def _with_keys(*names: str) -> AfterValidator:
    """A mapping with exactly these keys."""

    def check(values: dict[str, Any]) -> dict[str, Any]:
        if set(values) != set(names):
            raise ValueError(f"its keys are not {', '.join(names)}")
        return values

    return AfterValidator(check)


Word = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]
FileName = Annotated[str, Field(max_length=200), AfterValidator(_plain_name)]


class Part(BaseModel):
    """A part of a document. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Document(Part):
    """A whole file.

    Attributes:
        FORMAT: raised by hand when files of the present format can no longer be read or mean something else. It is in
            the file, because code that only reads or writes files is no dependency of a stage, so DVC does not see it.
        MADE_BY: the stage that writes the file.
    """

    FORMAT: ClassVar[int] = 1
    MADE_BY: ClassVar[str] = ""

    def write(self, path: Path) -> Self:
        """Write the file atomically, and return the document."""
        write_json(path, self.content())
        return self

    def content(self) -> dict[str, Any]:
        """The document and its format as JSON."""
        return {"format": self.FORMAT, **self.model_dump(mode="json")}

    @classmethod
    def read(cls, path: Path, remedy: str | None = None, *, stage: str | None = None) -> Self:
        """The document in a file.

        Args:
            remedy: what to do about a file that cannot be read; by default, to run its stage again.
            stage: that wrote the file, if it is not ``MADE_BY``.

        Raises:
            DataError: the file is missing, damaged, of another format or no such document.
        """
        return cls.parsed(read_json(path, remedy or _again(stage or cls.MADE_BY)), path, remedy, stage=stage)

    @classmethod
    def parsed(cls, value: Any, path: Path, remedy: str | None = None, *, stage: str | None = None) -> Self:
        """The document that JSON from ``path`` holds; arguments and errors as for :meth:`read`."""
        values = dict(value) if isinstance(value, Mapping) else {}
        stage = stage or cls.made_by(values)
        if (found := values.pop("format", None)) != cls.FORMAT:
            remedy = remedy or _again(stage, "-fs ")  # DVC considers the file up to date
            raise DataError(f"{path} has format {brief(found)}, but this version reads {cls.FORMAT}; {remedy}")
        try:
            return cls.model_validate_json(json.dumps(values), strict=True)
        except ValidationError as error:
            remedy = remedy or _again(stage)
            raise DataError(f"{path} is not what it should be ({reason_of(error, cls)}); {remedy}") from None

    @classmethod
    def made_by(cls, values: Mapping[str, Any]) -> str:
        """The stage that wrote these values."""
        return cls.MADE_BY


def _again(stage: str, options: str = "") -> str:
    return f"run `dvc repro {options}{stage}`" if stage else "run `dvc repro`"


def reason_of(error: ValidationError, schema: type[BaseModel]) -> str:
    """The first problem of a file, without the advice, which is for files that people write."""
    sentence = explain(error, schema)
    return sentence.rpartition("; ")[0] or sentence


def parse_as(kind: type[Any], content: bytes) -> Any:
    """JSON as a dataclass of :mod:`pipeline.portable.documents`; unknown keys are ignored.

    Raises:
        ValueError: it is no JSON, or does not fit the dataclass.
    """
    value = parse_json(content)
    try:
        return TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


class SplitCounts(Part):
    """Images of each split."""

    train: Count
    val: Count
    test: Count


class ImageFormat(Part):
    """The form in which networks see images, everywhere.

    Attributes:
        height, width: pixels.
        channels: 3 for RGB, 1 for grey.
        resize: of an image of another aspect ratio; squash: not kept, crop: its centre, letterbox: all of it on black.
        interpolation: of Pillow, with antialiasing.
    """

    height: Annotated[int, Field(ge=1, le=1024)]
    width: Annotated[int, Field(ge=1, le=1024)]
    channels: Literal[1, 3]
    resize: ResizeName
    interpolation: Interpolation

    @classmethod
    def of(cls, params: DataParams) -> Self:
        """The form that ``params`` ask for."""
        height, width = params.height_width
        return cls(
            height=height,
            width=width,
            channels=params.channels,
            resize=params.resize,
            interpolation=params.interpolation,
        )

    @property
    def of_decoding(self) -> dict[str, Any]:
        """As pipeline/data/decoding.py takes it, which is delivered without this class."""
        return self.model_dump(exclude={"height", "width"}) | {"image_size": [self.height, self.width]}

    @property
    def shape(self) -> Shape:
        """As networks take it."""
        return self.channels, self.height, self.width

    @property
    def bytes(self) -> int:
        """Of the pixels of an image as uint8."""
        return self.channels * self.height * self.width


class DataCard(Document):
    """data.json: the card of the image store.

    Attributes:
        storage: packed, or files, which are listed and stay where they are.
        class_names: in the order of the labels.
        mean, std: per channel, on the scale [0, 1].
        fingerprint: hash of all that training sees: pixels or files, their form, labels and class names.
    """

    FORMAT = 2
    MADE_BY = "prepare"

    name: Annotated[str, Field(max_length=1000)]
    storage: Literal["packed", "files"]
    class_names: Annotated[list[Annotated[str, Field(max_length=1000)]], Field(min_length=1)]
    image: ImageFormat
    mean: list[float]
    std: list[Annotated[float, Field(gt=0)]]
    counts: SplitCounts
    train_class_counts: list[int]
    source: Annotated[str, Field(max_length=1000)]
    licence: Annotated[str, Field(max_length=1000)]
    fingerprint: Annotated[str, Field(max_length=1000)]

    @field_validator("mean", "std")
    @classmethod
    def _has_a_number_per_channel(cls, value: list[float], info: ValidationInfo) -> list[float]:
        image = info.data.get("image")
        if image is not None and len(value) != image.channels:
            raise ValueError(f"it has {len(value)} numbers for {image.channels} channels")
        return value


class NetworkLineage(Part):
    """Hashes of what a network was made from; for a teacher that was trained here, all but ``data`` are None."""

    data: Hash
    teacher: Hash | None = None
    energy: Hash | None = None
    subset: Hash | None = None
    soft_labels: Hash | None = None
    checkpoint: Hash | None = None
    initial_weights: Hash | None = None


class NetworkDocument(Document):
    """A document about the teacher or the student."""

    role: Role

    @classmethod
    def made_by(cls, values: Mapping[str, Any]) -> str:
        """The stage that wrote these values."""
        return MAKERS.get(str(values.get("role")), "")


class NetworkCard(NetworkDocument):
    """card.json: description of a network, its accuracy on the validation split, and what it was made from.

    Attributes:
        source: trained here, or taken from a checkpoint.
        seed, epochs, precision, compiled, kept_epoch, best_val_top1, best_val_epoch: None for a checkpoint.
        precision: of the forward passes in training.
        compiled: whether torch.compile has made the passes in training; None also where it was not recorded.
        kept_epoch: the weights are of this epoch, and so is val_top1.
        parameters: number of learnable parameters.
        macs: multiply-accumulates of one image.
        distill, heda: blocks of params.yaml; None for a teacher.
    """

    FORMAT = 2

    network: Word
    num_classes: Annotated[int, Field(ge=1)]
    class_names: list[str]
    image: ImageFormat
    mean: list[float]
    std: list[float]
    source: Literal["trained", "checkpoint"]
    seed: int | None
    epochs: Count | None
    precision: Literal["fp32", "bf16"] | None
    compiled: bool | None = None
    kept_epoch: Count | None
    val_top1: Share
    best_val_top1: Share | None
    best_val_epoch: Count | None
    parameters: Count
    macs: Count
    weights_sha256: Hash
    lineage: NetworkLineage
    distill: dict[str, Any] | None = None
    heda: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        # a network with num_classes outputs is built before its weights show that the number is wrong
        if self.num_classes != len(self.class_names):
            raise ValueError(f"num_classes is not the {len(self.class_names)} of class_names")
        if self.role == "student" and None in (self.distill, self.heda, self.lineage.teacher, self.lineage.energy):
            raise ValueError("a student's card must have distill, heda, and teacher and energy in lineage")
        return self


class CurvesCard(NetworkDocument):
    """lineage.json in a folder of learning curves: the network that they belong to."""

    weights_sha256: Hash


class SoftLabelCard(Document):
    """card.json in the folder of soft labels: what they were made from.

    Attributes:
        teacher: hash of the weights that give the energies too.
        teachers: of the others whose probabilities are averaged with its.
        subset: hash of the table of the images with further views; None without them.
        augmentation, seed, mixed: of the views.
        kept: classes of each answer.
        energy_temperature: T_E.
    """

    MADE_BY = "store_soft_labels"

    data: str
    teacher: Hash
    teachers: list[Hash]
    subset: Hash | None
    augmentation: dict[str, Any]
    seed: Annotated[int, Field(ge=0)]
    mixed: bool
    views: Count
    extra_views: Count
    kept: Count
    energy_temperature: Annotated[float, Field(gt=0)]


class FileParity(Part):
    """Parity of an exported file; the first six attributes as in :class:`pipeline.portable.accuracy.Parity`.

    Attributes:
        energy_max_abs: largest difference of the file's energies from the torch network's.
        runtime: runtime that computed the file's logits for the comparison.
        executed_precision: precision that the runtime reports it executed on this machine.
    """

    images: Count
    max_abs: Distance
    mean_abs: Distance
    cosine: Annotated[float, Field(ge=-1.01, le=1.01)]
    top1_agreement: Share
    largest_flipped_margin: Distance | None
    delta_top1: Change
    delta_ci_low: Change
    delta_ci_high: Change
    energy_max_abs: Distance
    runtime: RuntimeName
    executed_precision: Word


class ExportedFile(Part):
    """One file that was written and compared with its network.

    Attributes:
        name: name in the folder; for an OpenVINO IR, that of its .xml file. It begins with the name of the network, so
            it is unique among the files of all networks.
        student: name of the student; None for the teacher.
        sha256: hash of the bytes of all its parts, the named one first.
        size_bytes: of all its parts.
        batch: images per call, fixed in the file; None for any number.
        fp32_layers: convolutions and matrix products that stay fp32 in an int8 file, in the order of computation.
    """

    name: FileName
    role: Role
    student: Word | None
    format: Literal["torch", "onnx", "openvino", "tensorrt"]
    precision: Precision
    sha256: Hash
    size_bytes: Annotated[int, Field(ge=1, le=10**15)]
    batch: Annotated[int, Field(ge=1, le=65536)] | None
    fp32_layers: list[Word]
    parity: FileParity


class MadeFrom(Part):
    """Hashes of the artifacts that a network's exported files and their accuracy are made from."""

    data: Hash
    teacher: Hash
    energy: Hash
    network: Hash


class ExportManifest(Document):
    """export.json: the exported files of a network; a teacher may have none."""

    FORMAT = 3
    MADE_BY = "export"

    lineage: MadeFrom
    opset: Annotated[int, Field(ge=1, le=1000)]
    files: list[ExportedFile]

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len({file.name for file in self.files}) != len(self.files):
            raise ValueError("a file is listed twice")
        return self


class CalibrationRecord(Document):
    """calibration.json: the images that int8 calibration used.

    Attributes:
        int8: block ``export.int8`` of params.yaml.
        sha256: hash of the indices as little-endian int64.
        indices: indices in the training split.
    """

    MADE_BY = "export"

    data: Hash
    energy: Hash
    selection: str
    seed: int
    int8: dict[str, Any]
    sha256: Hash
    indices: list[int]


class Router(Part):
    """Answers kept on the device by one score of uncertainty; see :mod:`pipeline.evaluation.routing`.

    Attributes:
        threshold: chosen on the validation split; None if all images are kept, or none.
        coverage, kept: share and number of the test images that are kept.
        top1: top-1 on the kept images; None if there are none.
        aurc: area under the risk-coverage curve.
        curve: top-1 among the most certain 5, 10, ..., 100 % of the test images.
    """

    threshold: float | None
    coverage: Share
    kept: Count
    top1: Share | None
    aurc: Annotated[float, Field(ge=0)]
    curve: Annotated[list[Share], Field(min_length=1, max_length=1000)]

    @model_validator(mode="after")
    def _of_some_images(self) -> Self:
        if (self.top1 is None) != (self.kept == 0):
            raise ValueError("top1 must be null if no image is kept, and only then")
        return self


class Routing(Part):
    """The energy and the largest softmax probability as routers."""

    wanted_top1: Share
    energy: Router
    max_softmax: Router


class ShotAccuracy(Part):
    """Balanced accuracy within many-, medium- and few-shot classes, for a long-tailed training split."""

    top1_many_shot: Share | None
    top1_medium_shot: Share | None
    top1_few_shot: Share | None


class EvaluatedRow(Part):
    """One file in one runtime on this machine.

    Attributes:
        precision_mismatch: what was executed instead of the file's precision, in one sentence.
        shots: None unless the training split is long-tailed.
        ece: expected calibration error.
    """

    name: FileName
    runtime: Word
    sha256: Hash
    precision_executed: Word
    precision_mismatch: str | None
    provider: Word
    runtime_version: Word
    accuracy: Accuracy
    balanced_accuracy: Share
    shots: ShotAccuracy | None
    ece: float
    routing: Routing


class Evaluation(Document):
    """evaluation.json: accuracy of a network's files.

    Attributes:
        answers_sha256: hash of the file with the answers to every image.
        group_sizes: number of test images of each energy group.
        shot_classes: number of many-, medium- and few-shot classes; None unless the training split is long-tailed.
    """

    FORMAT = 2
    MADE_BY = "evaluate"

    lineage: MadeFrom
    answers_sha256: Hash
    test_images: Annotated[int, Field(ge=1, le=10**12)]
    group_sizes: Annotated[dict[str, Count], _with_keys(*GROUPS)]
    shot_classes: Annotated[dict[str, Count], _with_keys("many", "medium", "few")] | None
    rows: list[EvaluatedRow]


class MeasuredFrom(Part):
    """Hashes of the artifacts that a measurement of several networks is made from; ``networks`` by name."""

    data: Hash
    teacher: Hash
    energy: Hash
    networks: Annotated[dict[Word, Hash], Field(min_length=1)]


class Measurement(Document):
    """benchmark.json, and result.json of a device in targets/.

    Attributes:
        device, machine, tuning, notes, started_at, seconds, bundle_sha256: as the device reported them, see
            :class:`pipeline.portable.documents.Result`.
        settings: block ``benchmark`` of params.yaml or device.yaml, with the images that were sent.
        samples_sha256: hash of the file with the latency of every timed call.
    """

    FORMAT = 3
    MADE_BY = "benchmark"

    device: Word
    machine: dict[str, Any]
    settings: dict[str, Any]
    lineage: MeasuredFrom
    bundle_sha256: Hash
    samples_sha256: Hash
    started_at: float
    seconds: float
    tuning: dict[str, Any]
    notes: list[Annotated[str, Field(max_length=2000), AfterValidator(_printable)]]
    rows: list[MeasuredRow]


class SeedDifference(Part):
    """Top-1 of a student minus that of a reference student, seed by seed.

    Attributes:
        value: mean over the seeds.
        half_width: of the 95 % interval; None where there are too few seeds for one.
    """

    reference: Word
    value: Change
    half_width: Distance | None


class StudentSpread(Part):
    """Test top-1 of a student after its last epoch, over several seeds.

    Attributes:
        seeds: how many.
        deviation: of the sample; None for one seed.
        difference: None for the reference itself.
        distill: block of params.yaml that it was trained with.
        initial_weights: hash of the file or of the library's tensors; None if random.
        soft_labels: hash of the card of the stored answers that it was trained with; None if a teacher ran.
    """

    seeds: Count
    mean: Share
    deviation: Distance | None
    difference: SeedDifference | None
    distill: dict[str, Any]
    initial_weights: Hash | None
    soft_labels: Hash | None


class StudentsSpread(Document):
    """spread.json: the students of params.yaml over several seeds, and what they have in common.

    Attributes:
        heda, augmentation: blocks of params.yaml.
    """

    FORMAT = 3

    data: Hash
    teacher: Hash
    energy: Hash
    heda: dict[str, Any]
    augmentation: dict[str, Any]
    students: dict[Word, StudentSpread]


class ShownResult(Part):
    """A device's result as it was shown last, and the budget that it was judged by."""

    result_sha256: Hash
    budget: BudgetParams


def check_lineage(path: Path, recorded: Mapping[str, Any], expected: Mapping[str, str], remedy: str = ONE_RUN) -> None:
    """Refuse a file that was made from other inputs than the ones in use.

    Raises:
        LineageError: one of the ``expected`` hashes differs from the recorded one; both are named.
    """
    for name, wanted in expected.items():
        if recorded.get(name) != wanted:
            found = brief(str(recorded.get(name))[:12])
            raise LineageError(f"{path} was made from {name} {found}, but the {name} in use is {wanted[:12]}; {remedy}")
