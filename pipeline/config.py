"""Typed schema of params.yaml.

The file is read as DVC reads it (YAML 1.2). An unknown key, a wrong type, a value out of range or a contradiction
between two values raises :class:`~pipeline.errors.ParamsError` with one sentence.
"""

import difflib
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import ParamsError
from pipeline.portable.text import brief

Model = TypeVar("Model", bound=BaseModel)

PRETRAINED = "pretrained"  # value of initial_weights: the weights that the network's library offers
TEACHER = "teacher"  # its files are named so, therefore no student can be

_STUDENT = re.compile(r"[a-z][a-z0-9_-]{0,31}")  # in commands, paths, stage names of DVC and names of files

_LARGEST = 1 << 18  # bytes of a YAML file; a reader in Python takes seconds for more
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100
_SHORT.maxlevel = 3

Fraction = Annotated[StrictFloat, Field(ge=0, le=1)]
HeldOutFraction = Annotated[StrictFloat, Field(ge=0.01, le=0.5)]
Positive = Annotated[StrictFloat, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[StrictFloat, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[StrictInt, Field(ge=1)]
Seed = Annotated[StrictInt, Field(ge=0, lt=2**32)]
BatchSize = Annotated[StrictInt, Field(ge=1, le=65536)]
PositiveFraction = Annotated[StrictFloat, Field(gt=0, le=1)]
RuntimeName = Literal["torch", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"]
Precision = Literal["fp32", "fp16", "int8"]


def _named_once(names: list[str]) -> list[str]:
    if len(set(names)) != len(names):
        raise ValueError("name each of them once")
    return names


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("the first number is above the second; exchange them")
    return pair


def _image_size(value: Any) -> Any:
    sides = value if isinstance(value, list | tuple) else [value, value]
    if len(sides) != 2 or not all(type(side) is int and 8 <= side <= 1024 for side in sides):
        raise ValueError("it is neither a whole number of pixels from 8 to 1024 nor [height, width]; change it")
    return value


def _no_flag(value: Any) -> Any:
    if isinstance(value, bool):  # which equals 0 or 1
        raise ValueError("it is true or false; give a number")
    return value


def _number_of_stages(freeze: int | str) -> int | str:
    if isinstance(freeze, int) and freeze < 0:
        raise ValueError(f"it is {freeze}; give a number of stages, 0 or more, or backbone")
    return freeze


Runtimes = Annotated[list[RuntimeName], Field(min_length=1), AfterValidator(_named_once)]
ImageSize = Annotated[int | tuple[int, int], BeforeValidator(_image_size)]
ResizeName = Literal["squash", "crop", "letterbox"]
Interpolation = Literal["bilinear", "bicubic"]


class Block(BaseModel):
    """A block of keys. Unknown keys are refused, and values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LauncherParams(Block):
    processes: Literal["auto"] | Count
    machines: Count
    rendezvous: Annotated[str, Field(pattern=r"^[\w.-]+:\d+$")] | None

    @model_validator(mode="after")
    def _machines_can_meet(self) -> Self:
        if self.machines > 1 and self.rendezvous is None:
            raise ValueError("several machines need rendezvous, host:port of one of them")
        return self


class PadCropParams(Block):
    name: Literal["pad"]
    padding: Annotated[StrictInt, Field(ge=0, le=64)]


class ResizedCropParams(Block):
    name: Literal["resized"]
    scale: Annotated[tuple[PositiveFraction, PositiveFraction], AfterValidator(_ascending)]
    ratio: Annotated[tuple[Positive, Positive], AfterValidator(_ascending)]


class NoCropParams(Block):
    name: Literal["none"]


Crop = Annotated[PadCropParams | ResizedCropParams | NoCropParams, Field(discriminator="name")]


class AugmentationParams(Block):
    crop: Crop
    horizontal_flip: StrictBool
    vertical_flip: StrictBool
    quarter_turns: StrictBool
    policy: Literal["none", "randaugment", "trivialaugment"]
    color_jitter: Fraction
    erasing: Fraction

    @property
    def padding(self) -> int:
        """Black pixels around an image before it is cropped."""
        return self.crop.padding if isinstance(self.crop, PadCropParams) else 0

    @property
    def come_again(self) -> bool:
        """Whether a view can be drawn again, which those of torchvision's operations cannot."""
        return self.policy == "none" and self.color_jitter == 0


class DataParams(Block):
    name: Literal["digits", "cifar10", "cifar100", "tiny-imagenet", "imagenet", "imagefolder"]
    root: Annotated[str, Field(min_length=1)]
    storage: Literal["auto", "packed", "files"]
    image_size: ImageSize
    channels: Annotated[Literal[1, 3], BeforeValidator(_no_flag)]
    resize: ResizeName
    interpolation: Interpolation
    validation_fraction: HeldOutFraction
    test_fraction: HeldOutFraction
    max_images_per_class: Count | None
    imbalance_factor: Annotated[StrictFloat, Field(ge=1, le=10000)]
    seed: Seed
    augmentation: AugmentationParams

    @property
    def height_width(self) -> tuple[int, int]:
        """Pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @model_validator(mode="after")
    def _quarter_turns_fit(self) -> Self:
        height, width = self.height_width
        if self.augmentation.quarter_turns and height != width:
            raise ValueError(
                f"augmentation.quarter_turns needs square images, but image_size is [{height}, {width}]; set "
                "augmentation.quarter_turns to false, or image_size to one number"
            )
        return self


class TrainingParams(Block):
    epochs: Annotated[StrictInt, Field(ge=1, le=10000)]
    batch_size: BatchSize
    optimizer: Annotated[str, Field(min_length=1)]
    learning_rate: Positive
    layer_decay: Annotated[StrictFloat, Field(ge=0.01, le=1)]
    momentum: Fraction
    weight_decay: NonNegative
    decay_norms_and_biases: StrictBool
    clip_grad_norm: Positive | None
    schedule: Literal["cosine", "step"]
    milestones: list[Count]
    warmup_epochs: NonNegative
    dropout: Annotated[StrictFloat, Field(ge=0, lt=1)]
    drop_path: Annotated[StrictFloat, Field(ge=0, lt=1)]
    label_smoothing: Annotated[StrictFloat, Field(ge=0, lt=1)]
    class_balance: Literal["none", "weights", "sampling"]
    freeze: Annotated[Literal["backbone"] | StrictInt, AfterValidator(_number_of_stages)]
    ema_decay: Annotated[StrictFloat, Field(ge=0, lt=1)] | None
    keep: Literal["last", "best"]
    precision: Literal["auto", "fp32", "bf16"]
    compile: Literal["auto", "on", "off"]

    @model_validator(mode="after")
    def _schedule_is_consistent(self) -> Self:
        if self.schedule == "step" and not self.milestones:
            raise ValueError("schedule step needs at least one milestone")
        if self.schedule == "cosine" and self.milestones:
            raise ValueError("milestones belong to schedule step; empty them or change the schedule")
        if sorted(set(self.milestones)) != self.milestones or any(m >= self.epochs for m in self.milestones):
            raise ValueError("milestones must ascend and lie below epochs")
        return self


Mean = list[Fraction] | None
Std = list[Annotated[StrictFloat, Field(ge=1e-3, le=1)]] | None


class NormalisedParams(Block):
    """The normalisation of a network; None: see the comments of params.yaml."""

    mean: Mean
    std: Std

    @model_validator(mode="after")
    def _normalisation_is_whole(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together; give both, or set both to null")
        return self


class NetworkParams(NormalisedParams):
    """What teacher and student have in common."""

    network: Annotated[str, Field(min_length=1)]
    initial_weights: Annotated[str, Field(min_length=1)] | None
    checkpoint_entry: Annotated[str, Field(min_length=1)] | None
    training: TrainingParams

    @property
    def weights_file(self) -> str | None:
        """The file whose weights the network gets."""
        return None if self.initial_weights == PRETRAINED else self.initial_weights

    @model_validator(mode="after")
    def _entry_is_of_a_file(self) -> Self:
        if self.checkpoint_entry is not None and self.weights_file is None:
            raise ValueError("checkpoint_entry names a part of a file, but no file of weights is given; set it to null")
        return self

    @model_validator(mode="after")
    def _frozen_weights_are_given(self) -> Self:
        if self.training.freeze != 0 and self.initial_weights is None and self.weights_file is None:
            raise ValueError(
                f"training.freeze is {self.training.freeze}, but these weights are drawn at random; give "
                "initial_weights, or set it to 0"
            )
        return self


class TeacherParams(NetworkParams):
    checkpoint: Annotated[str, Field(min_length=1)] | None
    minimum_top1: Fraction

    @property
    def weights_file(self) -> str | None:
        return super().weights_file or self.checkpoint

    @model_validator(mode="after")
    def _begins_once(self) -> Self:
        if self.checkpoint == PRETRAINED:
            raise ValueError(
                f"checkpoint is the file of a trained teacher; set initial_weights to {PRETRAINED} instead"
            )
        if self.checkpoint is not None and self.initial_weights is not None:
            raise ValueError(
                "checkpoint is a trained teacher and initial_weights the start of a training; set one of them to null"
            )
        return self


class EnergyParams(Block):
    temperature: Positive
    low_fraction: Annotated[StrictFloat, Field(ge=0, lt=1)]
    high_fraction: Annotated[StrictFloat, Field(ge=0, lt=1)]

    @model_validator(mode="after")
    def _groups_do_not_overlap(self) -> Self:
        if self.low_fraction + self.high_fraction > 1:
            raise ValueError(
                f"low_fraction + high_fraction is {self.low_fraction + self.high_fraction:g}; lower one so that "
                "the sum is at most 1"
            )
        return self


class HedaParams(Block):
    fraction: PositiveFraction
    subset: Literal["high_energy", "random", "low_energy"]
    mix: Literal["cutmix", "mixup", "none"]
    kd_weight: NonNegative
    mixed_label_weight: NonNegative


class FurtherTeacherParams(NormalisedParams):
    """A trained teacher beside that of the block ``teacher``; keys as there."""

    network: Annotated[str, Field(min_length=1)]
    checkpoint: Annotated[str, Field(min_length=1)]
    checkpoint_entry: Annotated[str, Field(min_length=1)] | None = None
    mean: Mean = None
    std: Std = None


ViewName = Literal["clean", "mixed", "stored"]


class SoftLabelParams(Block):
    views: Annotated[StrictInt, Field(ge=0, le=10000)]
    extra_views: Annotated[StrictInt, Field(ge=0, le=10000)]
    view: Literal["clean", "mixed"]
    classes: Count
    teachers: list[FurtherTeacherParams]
    max_gb: Positive

    @model_validator(mode="after")
    def _extra_views_have_others(self) -> Self:
        if self.extra_views and not self.views:
            raise ValueError(
                "extra_views are further ones of some images, but views is 0; raise it, or set extra_views to 0"
            )
        return self


class LossParams(Block):
    """Parameters that every base loss has; :data:`Loss` lists the losses."""

    ce_weight: NonNegative
    kd_weight: NonNegative


class KdParams(LossParams):
    name: Literal["kd"]


class DkdParams(LossParams):
    name: Literal["dkd"]
    alpha: NonNegative
    beta: NonNegative
    warmup_epochs: NonNegative


class MlkdParams(LossParams):
    name: Literal["mlkd"]
    low_confidence_only: StrictBool
    strong_view: StrictBool


class DistParams(LossParams):
    name: Literal["dist"]
    inter_weight: NonNegative
    intra_weight: NonNegative


class FeatureParams(LossParams):
    name: Literal["fitnet", "at", "reviewkd"]
    feature_weight: NonNegative
    warmup_epochs: NonNegative
    student_stages: Annotated[list[str], Field(min_length=1)] | None
    teacher_stages: Annotated[list[str], Field(min_length=1)] | None


# params.yaml holds only the parameters of the loss in use, so a training does not depend on those of other losses
Loss = Annotated[KdParams | DkdParams | MlkdParams | DistParams | FeatureParams, Field(discriminator="name")]


CertaintyName = Literal["energy", "max_logit"]


class TemperatureParams(Block):
    mode: Literal["groups", "continuous"]
    of: CertaintyName
    student: Literal["same", "own"]
    low_energy: Positive
    mid: Positive
    high_energy: Positive

    @property
    def limits(self) -> tuple[float, float]:
        """Lowest and highest temperature of mode continuous."""
        return min(self.low_energy, self.high_energy), max(self.low_energy, self.high_energy)

    @model_validator(mode="after")
    def _mode_fits(self) -> Self:
        if self.mode == "groups" and self.student == "own":
            raise ValueError(
                "student is own, but mode is groups, which are of the teacher's energy; set student to same, or mode "
                "to continuous"
            )
        if self.mode == "continuous" and not self.limits[0] <= self.mid <= self.limits[1]:
            raise ValueError(
                f"mid is {self.mid:g}, but mode is continuous, whose limits low_energy and high_energy are "
                f"{self.low_energy:g} and {self.high_energy:g}; put mid between them"
            )
        return self


class DistillParams(NetworkParams):
    loss: Loss
    logit_standardization: StrictBool
    temperatures: TemperatureParams
    assignment: Literal["sample", "view", "random"]
    sample_weight: Literal["none", "entropy"]
    view: ViewName

    @model_validator(mode="after")
    def _feature_maps_can_be_read(self) -> Self:
        name = self.loss.name
        if isinstance(self.loss, FeatureParams) and self.training.compile == "on":
            raise ValueError(
                f"training.compile is on, but {name} reads feature maps by hooks, which a compiled network does not "
                "run; set it to auto"
            )
        if isinstance(self.loss, FeatureParams) and self.view == "stored":
            raise ValueError(
                f"view is stored, which has the teacher's probabilities alone, but {name} reads its feature maps; set "
                "it to clean or mixed"
            )
        return self

    @model_validator(mode="after")
    def _second_view_is_drawn(self) -> Self:
        if isinstance(self.loss, MlkdParams) and self.loss.strong_view and self.view != "clean":
            raise ValueError(
                f"loss.strong_view is a second view beside a clean one, but view is {self.view}; set it to "
                "false, or view to clean"
            )
        return self


def _student_name(name: Any) -> str:
    if not (isinstance(name, str) and _STUDENT.fullmatch(name)):
        raise ValueError(
            f"{_shown(name)} cannot name a student, because it names folders and stages too; begin with a letter "
            "a-z, and go on with a-z, 0-9, _ and -, 32 at most"
        )
    if name == TEACHER:
        raise ValueError(f"no student can be called {TEACHER}; choose another name")
    return name


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` merged in, block by block; a list, or a block of another loss or crop, is replaced."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            other = key in ("loss", "crop") and value.get("name", old.get("name")) != old.get("name")
            result[key] = dict(value) if other else merged(old, value)
        else:
            result[key] = value
    return result


class CalibrationParams(Block):
    images: Annotated[StrictInt, Field(ge=8, le=10000)]
    selection: Literal["stratified", "random", "low_energy", "high_energy"]
    seed: Seed


class Int8Params(Block):
    ranges: Literal["error", "minmax"]
    rounding: StrictBool
    bias_correction: StrictBool
    weight_bits: Literal["auto", 7, 8]


class ParityParams(Block):
    images: Annotated[StrictInt, Field(ge=8, le=10000)]
    fp32_max_abs: Positive
    max_top1_drop: Fraction


class ExportParams(Block):
    precisions: list[Precision]
    openvino: StrictBool
    tensorrt: StrictBool
    teacher: StrictBool
    batch: Annotated[StrictInt, Field(ge=1, le=4096)] | None
    opset: Annotated[StrictInt, Field(ge=18, le=20)]
    ir_version: Annotated[StrictInt, Field(ge=8, le=11)] | None
    calibration: CalibrationParams
    int8: Int8Params
    parity: ParityParams

    @model_validator(mode="after")
    def _reference_is_exported(self) -> Self:
        if "fp32" not in self.precisions or len(set(self.precisions)) != len(self.precisions):
            raise ValueError("precisions must name fp32 and each precision once")
        return self


class EvaluateParams(Block):
    runtimes: Runtimes
    batch_size: Annotated[StrictInt, Field(ge=1, le=4096)]
    on_device_top1: Fraction
    many_shot_above: Annotated[StrictInt, Field(ge=0)]
    few_shot_below: Annotated[StrictInt, Field(ge=0)]

    @model_validator(mode="after")
    def _shots_do_not_overlap(self) -> Self:
        if self.few_shot_below > self.many_shot_above + 1:
            raise ValueError("few_shot_below is above many_shot_above; lower it, so that no class is both")
        return self


Batch = Annotated[StrictInt, Field(ge=1, le=4096)]
Threads = Annotated[StrictInt, Field(ge=0, le=1024)]


class BenchmarkParams(Block):
    """The block ``benchmark`` of params.yaml and of each targets/<device>/device.yaml."""

    runtimes: Runtimes
    batch_size: Batch
    threads: Threads
    images: Annotated[StrictInt, Field(ge=1, le=100_000)]
    timing_images: Annotated[StrictInt, Field(ge=1, le=100_000)]
    rounds: Annotated[StrictInt, Field(ge=2, le=100)]
    warmup_seconds: NonNegative
    warmup_count: Count
    min_seconds: Positive
    min_count: Annotated[StrictInt, Field(ge=10)]
    max_seconds: Positive
    cold_rounds: Annotated[StrictInt, Field(ge=0, le=100)]
    memory_pass: StrictBool
    sustained_minutes: Annotated[StrictFloat, Field(ge=0, le=240)]
    throughput: list[tuple[Batch, Threads]]
    allow_device_tuning: StrictBool
    wait_minutes: Annotated[StrictFloat, Field(ge=0, le=1440)]
    seed: Seed

    @model_validator(mode="after")
    def _limits_fit_each_other(self) -> Self:
        if self.max_seconds < self.min_seconds:
            raise ValueError("max_seconds is below min_seconds; raise it")
        if self.timing_images > self.images:
            raise ValueError("timing_images is above images, which they are taken from; lower it")
        if len(set(self.throughput)) != len(self.throughput):
            raise ValueError("throughput names a pair of batch and threads twice; remove one of them")
        return self

    def check_batch(self, fixed: int | None) -> None:
        """Refuse batch sizes other than the ``fixed`` one of the exported files; None accepts any.

        Raises:
            ValueError: one sentence without the name of the file.
        """
        if fixed is None:
            return
        if self.batch_size != fixed:
            raise ValueError(
                f"export.batch is {fixed}, but benchmark.batch_size is {self.batch_size}; make them equal, or "
                "export.batch null"
            )
        other = [batch for batch, _ in self.throughput if batch != fixed]
        if other:
            raise ValueError(
                f"export.batch is {fixed}, but benchmark.throughput asks for batch {other[0]}; remove that point, or "
                "make export.batch null"
            )


class BudgetParams(Block):
    """The block ``budget`` of params.yaml and of each targets/<device>/device.yaml."""

    choose: Literal["smallest", "fastest", "most_accurate"]
    cascades: StrictBool
    reference: Literal["best_student", "teacher"]
    minimum_top1: Fraction | None
    max_top1_drop: Fraction | None
    max_high_energy_drop: Fraction | None
    max_latency_p50_ms: Positive | None
    max_latency_p90_ms: Positive | None
    max_latency_p99_ms: Positive | None
    max_size_mb: Positive | None


class Params(Block):
    """The whole of params.yaml: one field per block.

    Attributes:
        students: by name; what an entry does not say is taken from ``distill``.
    """

    seed: Seed
    device: Literal["auto", "cpu", "cuda"]
    launcher: LauncherParams
    data: DataParams
    teacher: TeacherParams
    energy: EnergyParams
    heda: HedaParams
    soft_labels: SoftLabelParams
    distill: DistillParams
    students: dict[str, DistillParams]
    export: ExportParams
    evaluate: EvaluateParams
    benchmark: BenchmarkParams
    budget: BudgetParams

    @field_validator("students", mode="before")
    @classmethod
    def _inherit(cls, entries: Any, info: ValidationInfo) -> Any:
        if not (isinstance(entries, Mapping) and entries):
            raise ValueError("it must name one student or more, for example `student: {}`; add a line")
        shared = info.data.get("distill")
        if shared is None:  # it is wrong itself, which is the one thing to say
            return {}
        for name, changes in entries.items():
            _student_name(name)
            if not isinstance(changes, Mapping):
                raise ValueError(
                    f"{name} is {_shown(changes)}; write `{name}: {{}}` for a student that takes everything from "
                    "distill, or the keys that differ"
                )
        inherited = shared.model_dump()
        return {name: merged(inherited, changes) for name, changes in entries.items()}

    def of_student(self, name: str) -> Self:
        """These parameters with the block ``distill`` of one student."""
        return self.model_copy(update={"distill": self.students[name]})

    def block_of(self, name: str) -> str:
        """Where the parameters of a student stand, for messages."""
        return "distill" if self.students[name] == self.distill else f"students.{name}"

    @property
    def _distillations(self) -> dict[str, DistillParams]:
        """The block that students inherit, whose mistakes are reported first, and those of the students."""
        return {"distill": self.distill, **{f"students.{name}": student for name, student in self.students.items()}}

    @model_validator(mode="after")
    def _normalisation_has_a_number_per_channel(self) -> Self:
        further = {f"soft_labels.teachers[{n}]": teacher for n, teacher in enumerate(self.soft_labels.teachers)}
        blocks: dict[str, NormalisedParams] = {TEACHER: self.teacher, **self._distillations, **further}
        for name, block in blocks.items():
            for key, values in (("mean", block.mean), ("std", block.std)):
                if values is not None and len(values) != self.data.channels:
                    raise ValueError(
                        f"{name}.{key} has {len(values)} numbers, but data.channels is {self.data.channels}; give one "
                        "for each channel, or null"
                    )
        return self

    @model_validator(mode="after")
    def _batch_of_the_files_is_timed(self) -> Self:
        self.benchmark.check_batch(self.export.batch)
        return self

    @model_validator(mode="after")
    def _stored_views_are_used(self) -> Self:
        labels = self.soft_labels
        using = {name: block for name, block in self._distillations.items() if block.view == "stored"}
        for name in using:
            if not labels.views:
                raise ValueError(f"{name}.view is stored, but soft_labels.views is 0; raise it, or choose another view")
            if self.heda.mix != "none":
                raise ValueError(
                    f"{name}.view is stored, but the images that HE-DA mixes are others in each step; set heda.mix to "
                    "none, or choose another view"
                )
        views, most = (
            labels.views + labels.extra_views,
            max((block.training.epochs for block in using.values()), default=0),
        )
        if using and views > most:
            raise ValueError(
                f"soft_labels asks for {views} views of an image, but no student that uses them is trained for more "
                f"than {most} epochs; lower views or extra_views"
            )
        if labels.views and not self.data.augmentation.come_again:
            raise ValueError(
                "soft_labels.views stores answers to views that are drawn again, which policy and color_jitter cannot "
                "do; set data.augmentation.policy to none and color_jitter to 0, or soft_labels.views to 0"
            )
        return self


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and check the parameters.

    Raises:
        ParamsError: the file is missing, is not YAML, or does not fit the schema.
    """
    return validated(Params, read_yaml(path), str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML 1.2 file holds.

    Raises:
        ParamsError: the file is missing, is not YAML, or holds something else.
    """
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait
            raise ParamsError(f"{path} is not a file; put the parameters there")
        if path.stat().st_size > _LARGEST:
            raise ParamsError(f"{path} has {path.stat().st_size:,} bytes, more than {_LARGEST:,}; correct it")
        values = YAML(typ="safe", pure=True).load(path)
    except FileNotFoundError:
        raise ParamsError(f"{path} does not exist; correct the path, or run in the folder that holds it") from None
    except RecursionError:
        raise ParamsError(f"{path} is not readable as YAML (it is nested too deeply); correct it") from None
    except (YAMLError, ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        # ruamel also lets errors of its conversions through, for example for a date that does not exist
        reason = brief(str(error).partition("To suppress this check")[0], 400)  # advice for programs, not for files
        raise ParamsError(f"{path} is not readable as YAML ({reason}); correct it") from None
    if values is None:
        raise ParamsError(f"{path} is empty; restore the blocks of keys")
    if not isinstance(values, dict):
        raise ParamsError(f"{path} must hold blocks of keys, but holds {type(values).__name__}; restore the blocks")
    return values


def validated(schema: type[Model], values: Mapping[str, Any], where: str) -> Model:
    """Validate ``values`` against ``schema``.

    Args:
        where: start of the message, such as the path of the file.

    Raises:
        ParamsError: the values do not fit; one sentence about the first problem.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise ParamsError(f"{where}: {explain(error, schema)}") from None


def explain(error: ValidationError, schema: type[BaseModel]) -> str:
    """The first problem of a file as a clause that names the key and what to do."""
    # a misspelt key is also a missing one; the unknown spelling is the one to correct
    problems = sorted(error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    names, known = _path_in(schema, first["loc"])
    key = brief(".".join(names))
    where = f"{key}: " if key else ""  # what is wrong with several blocks names its keys itself
    more = f" ({len(problems) - 1} more after this one)" if len(problems) > 1 else ""
    match first["type"]:
        case "extra_forbidden":
            close = difflib.get_close_matches(names[-1], known, n=1)
            advice = f"did you mean {close[0]}?" if close else "remove it"
            return f"{key} is not a known key; {advice}{more}"
        case "missing":
            return f"{key} is missing; add it{more}"
        case "union_tag_not_found":
            return f"{key}.name is missing; add it{more}"
        case "union_tag_invalid":
            return f"{key}.name is {brief(repr(first['ctx']['tag']))}; use one of {first['ctx']['expected_tags']}{more}"
        case "value_error":
            return f"{where}{brief(first['ctx']['error'], 400)}{more}"
        case _:
            reason = first["msg"][0].lower() + first["msg"][1:]
            block = first["type"] in ("model_type", "model_attributes_type", "dict_type")
            advice = "; write a block of keys" if block else f": {brief(reason, 400)}; change it"
            # shortened, because the input can be large, and with nested YAML anchors larger than any memory
            return f"{key or 'it'} is {_shown(first['input'])}{advice}{more}"


def _shown(value: Any) -> str:
    """A value as YAML has it, shortened."""
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else brief(_SHORT.repr(value))


def _path_in(schema: type[BaseModel], location: tuple[int | str, ...]) -> tuple[list[str], list[str]]:
    """The keys that lead to a problem, and the known keys beside the last one; pydantic's union names are left out."""
    names: list[str] = []
    block: Any = schema
    known: list[str] = []
    for part in location:
        if get_origin(block) is dict:
            names.append(str(part))
            block = get_args(block)[1]
            continue
        blocks = [kind for kind in get_args(block) if hasattr(kind, "model_fields")] or [block]
        # pydantic puts the tag of the chosen union member into the location
        tagged = [kind for kind in blocks if len(blocks) > 1 and part in get_args(kind.model_fields["name"].annotation)]
        block = (tagged or blocks)[0]
        if tagged:
            continue
        if not (isinstance(part, str) and (part.startswith(("tuple[", "constrained", "nullable")) or "[" in part)):
            names.append(str(part))
            fields = getattr(block, "model_fields", {})
            known = list(fields)
            block = fields[part].annotation if part in fields else None
    return names, known
