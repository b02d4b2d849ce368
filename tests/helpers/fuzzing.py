"""Damage for the tests of damaged files: bytes and values changed at random, by a seed.

`pytest --fuzz N` sets the number of cases of each test; a long run is `pytest --fuzz 20000 -k fuzz`.
"""

import copy
import signal
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from mclc_gpu.errors import InputError

CASES: int | None = None  # set by conftest.py from --fuzz
_SECONDS = 120  # after which a case counts as one that hangs, on a machine that does much else
_PNG = b"\x89PNG\r\n\x1a\n"
_NUMBERS = [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 0x10000, 100_000]
_WORDS = [b"\0", b"\n", b'"', b",", b"-1", b"1e309", b"nan", b"9" * 400, b"[" * 3000]
_WORDS += [b"<a>" * 50, b"\xff\xfe"]
_VALUES: list[Any] = [
    None, True, -1, 0, 2, 0.5, 1e308, 10**30, 10**400, float("nan"), float("inf"), "", "x", "1", "\n", "\0",
    [], {}, [1], {"a": 1}, "\udcff", "\ud800", "9" * 5000,
]  # fmt: skip


def rngs(few: int) -> Iterator[np.random.Generator]:
    """Yield a random generator for each case: `few` of them, or as many as --fuzz gives."""
    return (np.random.default_rng(seed) for seed in range(CASES or few))


def damaged(data: bytes, rng: np.random.Generator, other: bytes = b"") -> bytes:
    """Return bytes with one to three random changes; in PNG files most checksums are corrected."""
    for _ in range(rng.integers(1, 4)):
        data = _CHANGES[rng.integers(len(_CHANGES))](data, rng, other)
    return _checked(data) if data.startswith(_PNG) and rng.random() < 0.8 else data


def _place(data: bytes, rng: np.random.Generator) -> int:
    """Draw a place, half of the time in the first 200 bytes, where headers are."""
    end = len(data) if rng.random() < 0.5 else min(len(data), 200)
    return int(rng.integers(end + 1))


def _flip(data: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    at = _place(data, rng)
    return data[:at] + bytes([rng.integers(256)]) + data[at + 1 :]


def _cut(data: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    return data[: rng.integers(len(data) + 1)]


def _number(data: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    at = _place(data, rng)
    form = rng.choice(["<I", ">I", "<H", ">H"])
    value = _NUMBERS[rng.integers(len(_NUMBERS))]
    packed = struct.pack(form, value if "I" in form else value & 0xFFFF)
    return data[:at] + packed + data[at + len(packed) :]


def _word(data: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    at = _place(data, rng)
    return data[:at] + _WORDS[rng.integers(len(_WORDS))] + data[at + int(rng.integers(3)) :]


def _repeat(data: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    first, last = sorted((_place(data, rng), _place(data, rng)))
    return data[:last] + data[first:last] * int(rng.integers(1, 4)) + data[last:]


def _drop(data: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    first, last = sorted((_place(data, rng), _place(data, rng)))
    return data[:first] + data[last:]


def _join(data: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    return data[: _place(data, rng)] + other[_place(other, rng) :]


_CHANGES: list[Callable[[bytes, np.random.Generator, bytes], bytes]] = [
    _flip, _flip, _cut, _number, _number, _word, _repeat, _drop, _join
]  # fmt: skip


def _checked(data: bytes) -> bytes:
    """Return a PNG file with correct checksums, as far as it consists of chunks."""
    made, at = data[:8], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        body = data[at + 4 : at + 8 + length]
        made += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return made + data[at:]


def changed(value: Any, rng: np.random.Generator) -> Any:
    """Return a copy of nested dicts and lists with one to three values, keys or items changed."""
    root = [copy.deepcopy(value)]
    for _ in range(rng.integers(1, 4)):
        places = list(_places(root))
        holder, key = places[rng.integers(len(places))]
        fate = rng.random()
        if fate < 0.2 and isinstance(holder, dict):
            del holder[key]
        elif fate < 0.3 and isinstance(holder, dict):
            holder[str(rng.choice(["x", "", "image", "seed"]))] = holder.pop(key)
        else:
            holder[key] = copy.deepcopy(_VALUES[rng.integers(len(_VALUES))])
    return root[0]


def _places(holder: Any) -> Iterator[tuple[Any, Any]]:
    items = holder.items() if isinstance(holder, dict) else enumerate(holder)
    for key, value in items:
        yield holder, key
        if isinstance(value, dict | list):
            yield from _places(value)


class Hung(Exception):
    """Raised when a case takes too long."""


@contextmanager
def limited() -> Iterator[None]:
    """Raise `Hung` in code that runs here for too long."""

    def ring(*_: object) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def only_input_errors(work: Callable[[], object]) -> bool:
    """Run work that may raise nothing but an InputError of one line; return whether it raised none."""
    message = ""
    try:
        with limited():
            work()
    except InputError as error:
        message = str(error)
    assert "\n" not in message, message
    return not message
