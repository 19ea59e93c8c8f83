"""Changes that make a valid value or file wrong. All draw from a ``random.Random``, so that a seed repeats a case."""

from __future__ import annotations

import copy
import json
import math
import random
import struct
from collections.abc import Callable
from typing import Any

# what breaks parsers, terminals, pages and shells
_CONTROL = (
    "",
    "\x00",
    "\x1b[2J\x1b[31mred",
    "a\nb",
    "a\r\nTraceback (most recent call last):",
    "\u202egnp.exe",
    "\ufffe",
)
_MARKUP = ("<script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "{{ 7 * 7 }}", "%s%n%x", "é" * 40)
_PATHS = ("../../../../etc/passwd", "/etc/passwd", "-oProxyCommand=touch owned")
_COMMANDS = ("$(touch owned)", "`touch owned`; touch owned", "=cmd|' /C calc'!A0")
SHORT_TEXTS = (*_CONTROL, *_MARKUP, *_PATHS, *_COMMANDS)
TEXTS = (*SHORT_TEXTS, "x" * 100_000, "nan", "1e999", "null")
# at the border of a type
NUMBERS = (0, -1, 1, 2, 255, 256, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, -(2**63), 10**40, 0.0, -0.0, 1e-320, 1e308)
_NOT_NUMBERS = (math.nan, math.inf, -math.inf)
_BINARY = (b"\x00", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\x00\x00\x00", b"\xed\xa0\x80", b"\xef\xbb\xbf")
_TAGS = (b"!!python/object/apply:os.system ['touch owned']\n", b"!!binary AAAA\n", b"%YAML 9.9\n---\n", b"\n---\n")
_ANCHORS = (b"&a [*a, *a]\n", b"<<: *a\n", b"? [1, 2]\n: 3\n")
_NESTED = (b"[" * 2000, b"{" * 2000, b"{a: " * 200, b"9" * 5000)
_SIGNS = (b"\t", b"NaN", b"\\ud800", b'"', b": ", b"- ", b"#")
PIECES = (*_BINARY, *_TAGS, *_ANCHORS, *_NESTED, *_SIGNS)


def odd_value(rng: random.Random) -> Any:
    """A value of any JSON type that a reader may not expect."""
    makers: tuple[Callable[[], Any], ...] = (
        lambda: rng.choice(TEXTS),
        lambda: rng.choice(NUMBERS),
        lambda: rng.choice(_NOT_NUMBERS),
        lambda: rng.choice((None, True, False)),
        lambda: copy.deepcopy(rng.choice(([], {}, [[]], [None], {"": None}))),
        lambda: [rng.choice(NUMBERS)] * rng.choice((1, 3, 300)),
        lambda: {rng.choice(TEXTS): rng.choice(TEXTS)},
        lambda: json.loads("[" * (depth := rng.choice((5, 60))) + "]" * depth),
    )
    return rng.choice(makers)()


def mutate_value(value: Any, rng: random.Random) -> Any:
    """A copy of JSON-like data with one to four changes anywhere in it, mostly one: the rest must still be read."""
    root = {"root": copy.deepcopy(value)}
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places: list[tuple[Any, Any]] = []
        _collect(root, places)
        _change(*rng.choice(places), rng)
        if "root" not in root:
            return None
    return root["root"]


def _collect(value: Any, places: list[tuple[Any, Any]]) -> None:
    for key, item in list(value.items()) if isinstance(value, dict) else list(enumerate(value)):
        places.append((value, key))
        if isinstance(item, (dict, list)) and len(places) < 5000:
            _collect(item, places)


def _change(holder: Any, key: Any, rng: random.Random) -> None:
    action = rng.randrange(8)
    if action == 0:
        del holder[key]
    elif action == 1 and isinstance(holder, dict):
        holder[rng.choice((*SHORT_TEXTS, f"{key}x", key[:-1]))] = holder.pop(key)
    elif action == 2 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    elif action in {3, 4} and isinstance(number := holder[key], (int, float)) and not isinstance(number, bool):
        near = (number + 1, number / 2, -number, float(number), str(number))
        holder[key] = rng.choice(near if rng.randrange(2) else (*NUMBERS, *_NOT_NUMBERS))
    elif action == 4 and isinstance(holder[key], dict):
        holder[key][rng.choice(SHORT_TEXTS)] = odd_value(rng)
    else:
        holder[key] = odd_value(rng)


def mutate_bytes(data: bytes, rng: random.Random, pieces: tuple[bytes, ...] = PIECES) -> bytes:
    """``data`` with one to six changes: bits, numbers, slices taken out, doubled, moved or overwritten, or the end."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        size = len(found)
        at = rng.randint(0, size)
        end = min(size, at + rng.choice((1, 2, 4, 8, 64, 1024)))
        action = rng.randrange(8)
        if action == 0 and size:
            found[at % size] ^= 1 << rng.randrange(8)
        elif action == 1 and size:
            found[at % size] = rng.randrange(256)
        elif action == 2:
            del found[at:end]
        elif action == 3:
            found[at:at] = found[at:end]
        elif action == 4:
            found[at:at] = rng.choice(pieces)
        elif action == 5:
            piece = rng.choice(pieces)
            found[at : at + len(piece)] = piece
        elif action == 6:
            form = rng.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
            most = 256 ** struct.calcsize(form) - 1
            number = struct.pack(form, rng.choice((0, 1, most // 2, most // 2 + 1, most - 1, most)))
            found[at : at + len(number)] = number
        elif rng.randrange(4) == 0:  # the end more rarely, or hardly any case would be a whole file
            del found[at:]
    return bytes(found)


def as_json(value: Any) -> bytes:
    """As Python writes it, NaN among it; a lone surrogate as an escape."""
    return json.dumps(value).encode()


def odd_json(content: bytes, rng: random.Random) -> bytes:
    """JSON with changes, half of them in its list of rows or files if it has one, some also with damaged bytes."""
    value = json.loads(content)
    part = next((key for key in ("rows", "files") if key in value), None)
    if part is not None and rng.randrange(2):  # most of the bytes, and few of the keys
        value[part] = mutate_value(value[part], rng)
    else:
        value = mutate_value(value, rng)
    return as_json(value) if rng.randrange(6) else mutate_bytes(as_json(value), rng)
