"""Hostile text, JSON and archives at random, always the same for the same generator."""

import json
import string
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from mutations import Random, chosen, mutated_bytes

from storage.archives import decode_arrays, encode_arrays

HOSTILE_WORDS = (
    "!!python/object/apply:os.system ['touch hacked']",
    "!!python/name:os.system",
    "!!bool maybe",
    "!!int ten",
    "!!float ten",
    "!!timestamp never",
    "!!binary \u00e4",
    "!!set {a, b}",
    "&a [*a, *a]",
    "*a",
    "<<: *a",
    "? [a, b]",
    "[" * 500,
    "[" * 20_000,
    "{" * 3000,
    "- " * 2000,
    "9" * 5000,
    "1e400",
    "-.inf",
    ".nan",
    "nan",
    "inf",
    "null",
    "true",
    "2020-13-45",
    "1:99:99",
    "0o9",
    '"\\0"',
    "../../x",
    "\x00",
    "\u2028",
    "''",
    "[]",
    "{}",
    '{"a": 1}',
    "-1",
    "1e30",
    "1_0",
    "#",
    "#Name",
    ",",
    '"',
    "Name",
)
HOSTILE_VALUES = (
    None,
    True,
    -1,
    0,
    1.5,
    10**30,
    float("nan"),
    float("inf"),
    "",
    "../../x",
    "\x00",
    "2026-11-01",
    "<b>",
    [],
    [1, "a", None],
    {},
    {"a": {"b": []}},
    [[[[]]]],
)


def mutated_text(text: str, random: Random, hostile: Sequence[str]) -> bytes:
    """Repeat, drop, swap or replace lines and words, and put hostile ones among them; at times on the bytes too."""
    lines = text.splitlines() or [""]
    for _ in range(int(random.integers(1, 4))):
        at = int(random.integers(len(lines)))
        other = int(random.integers(len(lines)))
        words = lines[at].split(" ")
        word = int(random.integers(len(words)))
        match int(random.integers(7)):
            case 0:
                lines[at] = chosen(random, hostile)
            case 1:
                words[word] = chosen(random, hostile)
                lines[at] = " ".join(words)
            case 2:
                lines.insert(at, lines[other])
            case 3:
                lines[at], lines[other] = lines[other], lines[at]
            case 4:
                del words[word]
                lines[at] = " ".join(words)
            case 5:
                words[word] += "".join(chosen(random, string.printable) for _ in range(int(random.integers(1, 9))))
                lines[at] = " ".join(words)
            case 6:
                head, colon, _ = lines[at].partition(":")
                lines[at] = head + (colon or ",") + " " + chosen(random, hostile)
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    return mutated_bytes(content, random) if random.random() < 0.3 else content


def mutated_json(text: str, random: Random) -> bytes:
    """Replace, drop or add values of a JSON file at any depth, or spoil its text."""
    if random.random() < 0.3:
        return mutated_text(text, random, HOSTILE_WORDS)
    values = json.loads(text)
    places = list(_places(values))
    for _ in range(int(random.integers(1, 3))):
        holder, key = chosen(random, places)
        if isinstance(holder, dict) and random.random() < 0.2:
            holder.pop(key, None)
        elif isinstance(holder, dict) and random.random() < 0.1:
            holder["unknown"] = 1
        elif isinstance(holder, dict) or key < len(holder):
            holder[key] = chosen(random, HOSTILE_VALUES)
    return json.dumps(values).encode("utf-8", "surrogatepass")


def _places(values: Any) -> Iterator[tuple[Any, Any]]:
    items = values.items() if isinstance(values, dict) else enumerate(values)
    for key, value in list(items):
        yield values, key
        if isinstance(value, dict | list):
            yield from _places(value)


def mutated_npz(content: bytes, random: Random) -> bytes:
    """Replace arrays of an archive by others, or spoil its bytes."""
    if random.random() < 0.5:
        return mutated_bytes(content, random)
    arrays: dict[str, Any] = dict(decode_arrays(content, Path("sound.npz")))
    key = chosen(random, sorted(arrays))
    array = arrays[key]
    replacements: tuple[Callable[[], Any], ...] = (
        lambda: np.full_like(array, np.nan) if array.dtype.kind == "f" else array[()],
        lambda: np.zeros(0),
        lambda: array.astype(chosen(random, ("f2", "f8", "S4", "U4", "i8", "?", "c16"))),
        lambda: array.reshape(-1)[:1],
        lambda: array[np.newaxis],
        lambda: -np.abs(array) if array.dtype.kind == "f" else array,
        lambda: np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        lambda: np.array(["2020-01-01"], dtype="M8[D]"),
        lambda: np.array("text"),
        lambda: np.float64(0),
        lambda: np.float64(np.inf),
        lambda: np.int64(-(2**63)),
    )
    if random.random() < 0.1:
        del arrays[key]
    else:
        with suppress(ValueError):  # text is no number
            arrays[key] = chosen(random, replacements)()
    packed = encode_arrays(arrays)
    return mutated_bytes(packed, random) if random.random() < 0.2 else packed
