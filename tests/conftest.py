"""Shared fixtures: reference figures, made-up documents, and a tiny run of which nothing was trained."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from numpy.typing import NDArray
from pydantic import TypeAdapter
from ruamel.yaml import YAML

from pipeline.config import TEACHER, AugmentationParams, Loss, Params, load_params
from pipeline.data.augmentation import NONE
from pipeline.data.normalisation import Normalisation
from pipeline.lineage import Places, Run
from pipeline.store.documents import ImageFormat
from pipeline.store.json_files import write_json
from pipeline.store.tables import EnergyLineage, sha256_model, write_table

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"
STUDENT = "student"  # the only one of params.yaml as shipped
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # a hundred processes start here: each would compile the code again
# a shell ignores Ctrl-C for what it starts in the background, and so would all processes that start here
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with whole stages first: at the end, one process would be left alone with them."""
    slow = {item.path for item in items if item.get_closest_marker("e2e")}
    items.sort(key=lambda item: item.path not in slow)


# a whole card of a network, but for what write_network adds
CARD = {
    "role": "student",
    "network": "resnet8",
    "num_classes": 5,
    "class_names": list("abcde"),
    "image": {"height": 32, "width": 32, "channels": 3, "resize": "squash", "interpolation": "bilinear"},
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "source": "checkpoint",
    "seed": None,
    "epochs": None,
    "precision": None,
    "kept_epoch": None,
    "val_top1": 0.5,
    "best_val_top1": None,
    "best_val_epoch": None,
    "distill": {},
    "heda": {},
    "lineage": dict.fromkeys(("data", "teacher", "energy", "subset"), "0" * 64),
}
PARITY = {
    "images": 8,
    "max_abs": 1e-6,
    "mean_abs": 1e-7,
    "cosine": 1.0,
    "top1_agreement": 1.0,
    "largest_flipped_margin": None,
    "delta_top1": 0.0,
    "delta_ci_low": 0.0,
    "delta_ci_high": 0.0,
    "energy_max_abs": 1e-6,
    "runtime": "onnxruntime",
    "executed_precision": "fp32",
}


def entry(name: str, sha256: str, /, **changes: object) -> dict[str, Any]:
    """The entry of a student's file in a manifest, with its format by the ending of its name, and ``changes``."""
    return {
        "name": name,
        "role": "student",
        "student": STUDENT,
        "format": {".onnx": "onnx", ".xml": "openvino", ".pt2": "torch"}[Path(name).suffix],
        "precision": "fp32",
        "sha256": sha256,
        "size_bytes": 1000,
        "batch": None,
        "fp32_layers": [],
        "parity": PARITY,
        **changes,
    }


def write_manifest(path: Path, *names: str, **changes: object) -> None:
    """A manifest of files that lie beside it; ``changes`` to the entry of each."""
    files = [entry(name, sha256_model(path.parent / name), **changes) for name in names]
    lineage = dict.fromkeys(("data", "teacher", "energy", "network"), "0" * 64)
    write_json(path, {"format": 3, "lineage": lineage, "opset": 18, "files": files})


def state_hash(network: Any) -> str:
    """Hash of all parameters and buffers: equal before and after if nothing moved."""
    import torch

    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="session")
def golden() -> dict[str, NDArray]:
    """Figures of the public reference implementations; tests/golden/README.md says which."""
    figures: dict[str, NDArray] = {}
    for name in ("losses.npz", "ea_kd.npz"):
        with np.load(GOLDEN / name, allow_pickle=False) as file:
            figures |= file
    return figures


def loss_params(name: str, **changes: object) -> Loss:
    """The parameters of a base loss as params.yaml lists them, some of them changed."""
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    blocks = [YAML(typ="safe").load(block) for block in re.findall(r"^  # (\{name: .*\})$", text, re.MULTILINE)]
    listed = {block["name"]: block for block in [*blocks, {"name": "kd", "ce_weight": 0.1, "kd_weight": 0.9}]}
    listed |= {other: listed["fitnet"] | {"name": other, "feature_weight": 1.0} for other in ("at", "reviewkd")}
    return TypeAdapter(Loss).validate_python(listed[name] | changes)


def squashed(side: int) -> ImageFormat:
    """Square RGB images as shipped."""
    return ImageFormat(height=side, width=side, channels=3, resize="squash", interpolation="bilinear")


def augmented(padding: int = 0, **changes: object) -> AugmentationParams:
    """No augmentation but a pad crop and ``changes``."""
    return AugmentationParams(**(NONE.model_dump() | {"crop": {"name": "pad", "padding": padding}} | changes))


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that ``make`` fills, once for all processes of this test run; the others wait for it."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder = shared / f"once-{name}"
    with FileLock(shared / f"once-{name}.lock"):
        if not folder.exists():
            made = tmp_path_factory.mktemp(name)
            make(made)
            made.rename(folder)
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in a process with OMP_NUM_THREADS=1, for results that are compared with those of one, byte by byte."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def params() -> Params:
    """The parameters as shipped, but with Energy KD and HE-DA as the paper has them."""
    shipped, paper = load_params(ROOT / "params.yaml"), load_params(ROOT / "recipes/paper.yaml")
    distill = shipped.distill.model_copy(update={"temperatures": paper.distill.temperatures})
    return shipped.model_copy(update={"heda": paper.heda, "distill": distill})


@pytest.fixture(scope="session")
def tiny_run_once(tmp_path_factory: pytest.TempPathFactory, params: Params) -> Path:
    """The folder of :func:`tiny_run`, not to be changed."""
    from pipeline.data.store import make_store

    folder = tmp_path_factory.mktemp("tiny") / "run"
    run = Run(places_in(folder))
    make_store(run.places.data, params.data.model_copy(update={"image_size": 8}))
    write_chain(run, params)
    return folder


@pytest.fixture
def tiny_run(tiny_run_once: Path, tmp_path: Path) -> Run:
    """A run up to the student as shipped, to work in: the digits at 8 x 8 pixels, two resnet8 with weights as they are
    drawn, and energies by chance. Its folder is ``tmp_path / "run"``, where its files lie as in a repository."""
    return Run(places_in(shutil.copytree(tiny_run_once, tmp_path / "run")), [STUDENT])


def places_in(folder: Path) -> Places:
    """Where the artifacts of a run lie in a folder."""
    return Places(**{name: folder / path for name, path in vars(Places()).items()})


def write_chain(run: Run, params: Params, seed: int = 0) -> None:
    """All from the teacher to the students, of the packed data; ``seed`` is that of the weights."""
    from pipeline.energy.subset import make_subset

    write_untrained(run, TEACHER, seed)
    write_scores(run, "train")
    write_scores(run, "test", energy=run.energy_sha256)
    make_subset(run, params.heda, params.seed)
    for name in params.students:
        write_student(run, name, seed)


def write_student(run: Run, name: str, seed: int = 0, normalisation: Normalisation | None = None) -> None:
    """A student with weights as they are drawn; without ``normalisation``, in that of the training images."""
    lineage = {"teacher": run.teacher.weights_sha256, "energy": run.energy_sha256, "subset": run.subset_sha256}
    write_untrained(run, name, seed, normalisation, **lineage)


def write_untrained(run: Run, name: str, seed: int, normalisation: Normalisation | None = None, **lineage: str) -> None:
    """A network with weights as they are drawn, others for each name and seed."""
    import torch

    from pipeline.training.card import card_facts, checkpoint_facts
    from pipeline.training.weights import build_network, write_network

    torch.manual_seed(zlib.crc32(f"{name} {seed}".encode()))
    network, made = build_network("resnet8", len(run.data.class_names), f"{name}.network"), run.network(name)
    settings = {} if made.role == "teacher" else {"distill": {}, "heda": {}}
    facts = card_facts(made.role, "resnet8", run.data, lineage, normalisation) | checkpoint_facts(0.1) | settings
    write_network(made.places.weights, network, facts)


def write_scores(run: Run, split: str, energy: str | None = None) -> None:
    """Energies by chance, the upper fifth high and the lower fifth low.

    Args:
        energy: hash of the table of the training split, for that of the test split.
    """
    count = getattr(run.data.counts, split)
    scores = np.random.default_rng(0).normal(-8, 1, count).astype(np.float32)
    low, high = np.quantile(scores, (0.2, 0.8))
    columns = {
        "index": np.arange(count),
        "label": np.load(run.places.data / f"{split}_labels.npy"),
        "energy": scores,
        "max_logit": np.square(scores),
        "confidence": np.full(count, 0.5, np.float32),
        "correct": np.zeros(count, bool),
        "group": (1 + (scores > high) - (scores < low)).astype(np.int8),
    }
    made_from = {"data": run.data.fingerprint, "teacher": run.teacher.weights_sha256, "energy": energy, "split": split}
    lineage = EnergyLineage(temperature=4.0, low_threshold=float(low), high_threshold=float(high), **made_from)
    write_table(run.places.energy if split == "train" else run.places.energy_test, [columns], lineage)
