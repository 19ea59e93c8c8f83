"""Changes that make a valid file wrong. All draw from a ``random.Random``, so a seed, or hypothesis, repeats a case."""

from __future__ import annotations

import copy
import math
import random
import struct
from collections.abc import Callable
from typing import Any

# What breaks parsers, terminals, pages and shells: numbers at the border of a type, names that are paths or markup,
# control characters, YAML tags and anchors, and JSON that Python reads though it is none.
TEXTS = (
    "",
    "\x00",
    "\x1b[2J\x1b[31mred",
    "a\nb",
    "a\r\nTraceback (most recent call last):",
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "{{ 7 * 7 }}",
    "../../../../etc/passwd",
    "/etc/passwd",
    "-oProxyCommand=touch owned",
    "$(touch owned)",
    "`touch owned`; touch owned",
    "=cmd|' /C calc'!A0",
    "\u202egnp.exe",
    "\ufffe",
    "é" * 40,
    "x" * 100_000,
    "%s%n%x",
    "nan",
    "1e999",
    "null",
)
NUMBERS = (0, -1, 1, 2, 255, 256, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, -(2**63), 10**40, 0.0, -0.0, 1e-320, 1e308)
NOT_NUMBERS = (math.nan, math.inf, -math.inf)
PIECES = (
    b"\x00",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x80\x00\x00\x00",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"!!python/object/apply:os.system ['touch owned']\n",
    b"!!binary AAAA\n",
    b"&a [*a, *a]\n",
    b"<<: *a\n",
    b"? [1, 2]\n: 3\n",
    b"%YAML 9.9\n---\n",
    b"\n---\n",
    b"\t",
    b"[" * 2000,
    b"{" * 2000,
    b"{a: " * 200,
    b"9" * 5000,
    b"NaN",
    b"\\ud800",
    b'"',
    b": ",
    b"- ",
    b"#",
)


def odd_value(rng: random.Random) -> Any:
    """A value of any JSON type that a reader may not expect."""
    makers: tuple[Callable[[], Any], ...] = (
        lambda: rng.choice(TEXTS),
        lambda: rng.choice(NUMBERS),
        lambda: rng.choice(NOT_NUMBERS),
        lambda: rng.choice((None, True, False)),
        lambda: rng.choice(([], {}, [[]], [None], {"": None})),
        lambda: [rng.choice(NUMBERS)] * rng.choice((1, 3, 300)),
        lambda: {rng.choice(TEXTS): rng.choice(TEXTS)},
        lambda: nested(rng.choice((5, 60))),
    )
    return rng.choice(makers)()


def nested(depth: int) -> Any:
    """A list in a list, ``depth`` times."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def mutate_value(value: Any, rng: random.Random) -> Any:
    """A copy of JSON-like data with one to four changes anywhere in it, mostly one: the rest must still be read."""
    root = {"root": copy.deepcopy(value)}
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places: list[tuple[Any, Any]] = []
        _collect(root, places)
        holder, key = rng.choice(places)
        _change(holder, key, rng)
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
        holder[rng.choice((*TEXTS[:16], f"{key}x", key[:-1]))] = holder.pop(key)
    elif action == 2 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    elif action == 3 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
        holder[key] = rng.choice((*NUMBERS, *NOT_NUMBERS, -holder[key], str(holder[key]), float(holder[key])))
    elif action == 4 and isinstance(holder[key], dict):
        holder[key][rng.choice(TEXTS[:16])] = odd_value(rng)
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
