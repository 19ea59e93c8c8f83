"""Checkpoints that other programs have written: find the weights of a network in them, without running their code.

torch's ``weights_only`` reader refuses a file that holds an object of a class it does not know, such as the options of
the training program. Here such objects become empty placeholders; nothing of their class is imported or called.
"""

import logging
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.errors import CheckpointError
from pipeline.portable.text import brief, first_line

# keys under which training programs store a state dict; averaged weights first, as they are the better ones
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "params_ema")
_WRAPPERS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net_state_dict", "net", "network", "module"),
    *("weights", "params"),
)
_COUNTER = "num_batches_tracked"  # of a batch normalisation; only its momentum schedule, which no network here uses
_NO_WEIGHTS = re.compile(r"(^|\.)(total_ops|total_params|n_averaged)$")  # added by profilers and by weight averaging
_BESIDE = re.compile(r"\w*(loss|criterion|aux)\w*\.", re.IGNORECASE)  # parts of a training, not of the network
_UNKNOWN_CLASS = re.compile(r"GLOBAL (\S+) was not an allowed global")
CONVERT = "`python -m stages.convert`"
RUN_CODE = "`python -m stages.convert --run-code`, if you trust it"


class Placeholder:
    """Stands for an object of a class that is not loaded."""

    def __new__(cls, *arguments: object, **options: object) -> "Placeholder":
        return super().__new__(cls)

    def __init__(self, *arguments: object, **options: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def read_checkpoint(path: Path, entry: str | None = None) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, as the program that wrote it named them.

    Args:
        path: a .safetensors file, or a torch file.
        entry: key of the state dict in the file; None: averaged weights if there are some, else the usual keys.

    Raises:
        CheckpointError: the file is missing, is none of these, needs code to be read, or holds no tensors; names the
            cause.
    """
    safe = path.suffix.lower() == ".safetensors"
    return find_tensors(_read_safetensors(path) if safe else _read_torch(path), path, entry)


def find_tensors(content: Any, path: Path, entry: str | None = None) -> dict[str, Tensor]:
    """The same in what a file holds."""
    keys = list(content) if isinstance(content, Mapping) else []
    for _ in range(3):  # a state dict lies at most that deep
        if not isinstance(content, Mapping):
            break
        key = entry if entry is not None and entry in content else _usual_key(content, path)
        if key is None:
            break
        content = content[key]
        if key == entry:
            keys, entry = list(content) if isinstance(content, Mapping) else [], None
    if isinstance(content, nn.Module):  # where code of the file may be run
        content = content.state_dict()
    if isinstance(content, Placeholder):
        raise CheckpointError(f"{path} holds a whole pickled network; write its weights with {RUN_CODE}")
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds {type(content).__name__}, not a state dict; save the state dict")
    numbers = {name: torch.from_numpy(value) for name, value in content.items() if _is_weights(value)}
    tensors = {str(name): value for name, value in {**content, **numbers}.items() if isinstance(value, Tensor)}
    if entry is not None:
        tensors = {name: value for name, value in tensors.items() if name.startswith(f"{entry}.")}
    if not tensors and any(isinstance(value, Placeholder) for value in content.values()):
        raise CheckpointError(
            f"{path} holds objects in place of tensors, such as arrays of numpy; convert it with {RUN_CODE}"
        )
    if not tensors:
        there = ", ".join(brief(str(key), 40) for key in keys[:12]) or "nothing"
        wanted = "no state dict" if entry is None else f"no state dict {brief(entry)}"
        raise CheckpointError(f"{path} holds {wanted}, but {there}; name the right one with checkpoint_entry")
    return tensors


def _is_weights(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def matched(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors by the names of the network: prefixes of wrappers are taken off, counters are added.

    A prefix is what stands before a name of the network in most names of the checkpoint (``module.``, ``_orig_mod.``,
    ``model.``, ``backbone.``). Tensors outside of it, of a loss or of auxiliary classifiers are left out with a
    warning; others are kept, so that loading names them.

    Raises:
        CheckpointError: the checkpoint holds two networks that fit.
    """
    own = network.state_dict()
    tensors = {name: value for name, value in tensors.items() if not _NO_WEIGHTS.search(name)}
    found = _ends(own, tensors)
    prefixes = Counter(name.removesuffix(key) for key, names in found.items() for name in names)
    # names such as conv1.weight are parts of others in any network, so a prefix must stand before most names
    prefix = _best_prefix({prefix: count for prefix, count in prefixes.items() if 2 * count >= len(own)}, path)
    result = {key: tensors[prefix + key] for key in found if prefix + key in tensors}
    alone = {key: names[0] for key, names in found.items() if key not in result and len(names) == 1 and prefix}
    for key, name in alone.items():
        logging.warning("%s: took %s as %s, which is missing under %s", path, name, key, prefix)
        result[key] = tensors[name]
    used = {prefix + key for key in result} | set(alone.values())
    rest = {name: name.removeprefix(prefix) for name in tensors if name not in used}
    outside = [
        name
        for name, inner in rest.items()
        if not name.startswith(prefix) or (inner not in own and _BESIDE.match(inner))
    ]
    if result and outside:
        logging.warning("%s: left out %d tensors beside the network, such as %s", path, len(outside), outside[0])
    left_out = set(outside) if result else set()
    result |= {inner: tensors[name] for name, inner in rest.items() if name not in left_out}
    return result | {name: own[name] for name in own if name.endswith(_COUNTER) and name not in result}


def _ends(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """For each name of the network the names of the checkpoint that end with it."""
    found: dict[str, list[str]] = {}
    for name in tensors:
        parts = name.split(".")
        for start in range(len(parts)):
            if (key := ".".join(parts[start:])) in own:
                found.setdefault(key, []).append(name)
    return found


def _best_prefix(prefixes: Mapping[str, int], path: Path) -> str:
    """The most frequent prefix; of equals that of averaged weights, which is said, or none."""
    tied = [prefix for prefix, count in prefixes.items() if count == max(prefixes.values())] or [""]
    averaged = [prefix for prefix in tied if prefix.rstrip(".") in _AVERAGED]
    if len(tied) > 1 and averaged:
        logging.warning("%s: took the averaged weights %s; checkpoint_entry chooses others", path, averaged[0])
        return averaged[0]
    if len(tied) > 1 and "" not in tied:
        raise CheckpointError(
            f"{path} holds two networks that fit, {brief(tied[0])} and {brief(tied[1])}; name one with "
            "checkpoint_entry, without the last dot"
        )
    return "" if "" in tied else tied[0]


def by_order(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The tensors by the names of the network, if they fit one by one in order and shape; else None."""
    own = {name: value for name, value in network.state_dict().items() if not name.endswith(_COUNTER)}
    given = [value for name, value in tensors.items() if not name.endswith(_COUNTER) and not _NO_WEIGHTS.search(name)]
    if [value.shape for value in own.values()] != [value.shape for value in given]:
        return None
    counters = {name: value for name, value in network.state_dict().items() if name.endswith(_COUNTER)}
    return dict(zip(own, given, strict=True)) | counters


def _usual_key(content: Mapping[Any, Any], path: Path) -> str | None:
    """The key of the state dict; None if ``content`` is one itself, or holds none."""
    for key in (*_AVERAGED, *_WRAPPERS):
        inner = content.get(key)
        if isinstance(inner, Placeholder | nn.Module) or (isinstance(inner, Mapping) and inner):
            others = [name for name in _WRAPPERS if isinstance(content.get(name), Mapping)]
            if key in _AVERAGED and others:
                logging.warning(
                    "%s: took the averaged weights %s, not %s; checkpoint_entry chooses", path, key, others[0]
                )
            return key
    return None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path))
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {path} does not exist; correct the path") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _read_torch(path: Path) -> Any:
    known: list[Any] = []
    while True:
        try:
            with warnings.catch_warnings(), torch.serialization.safe_globals(known):
                warnings.simplefilter("ignore")  # about files that are not torch's own; the error below says it
                return torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise CheckpointError(f"checkpoint {path} does not exist; correct the path") from None
        except Exception as error:  # torch raises many kinds of errors on damaged files
            unknown = _UNKNOWN_CLASS.search(str(error))
            if unknown is None or (Placeholder, unknown[1]) in known:
                raise _unreadable(path, error) from None
            known.append((Placeholder, unknown[1]))


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    """The error for a file that is no readable checkpoint, by its cause."""
    reason = brief(first_line(error).partition(". ")[0])
    sentence = f"is not a safetensors file or a plain state dict ({reason}); save it as one of those"
    start = path.open("rb").read(512).lstrip().lower() if path.is_file() else b""
    names: list[str] = []
    if path.is_file() and zipfile.is_zipfile(path):
        with suppress(zipfile.BadZipFile, ValueError, OSError):  # of a damaged archive
            names = zipfile.ZipFile(path).namelist()
    if path.is_dir():
        sentence = "is a folder; name the file in it"
    elif start.startswith(b"version https://git-lfs"):
        sentence = "is a pointer of Git LFS, not the weights; run `git lfs pull`"
    elif start.startswith((b"<!doctype html", b"<html")):
        sentence = "is a saved web page; download the file behind its link"
    elif any(name.endswith("constants.pkl") for name in names):
        sentence = f"is a TorchScript program; write its weights with {RUN_CODE}"
    elif any("serialized_exported_program" in name or "archive_format" in name for name in names):
        sentence = "is a torch.export program; save the state dict of its network instead"
    elif "weights_only" in str(error):
        sentence = f"can only be read by running code in it; write its weights with {RUN_CODE}"
    return CheckpointError(f"checkpoint {path} {sentence}")
