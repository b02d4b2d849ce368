"""Atomic files and tables."""

import math
import os

import numpy as np
import pytest

from mclc_gpu.data.files import atomic_path, remove_leftovers, write_csv
from mclc_gpu.errors import InputError, Skipped, attempt


def test_atomic_path(tmp_path):
    final = tmp_path / "new" / "a.csv"
    with atomic_path(final) as temporary:
        assert temporary.suffix == ".csv"
        temporary.write_text("first")
        assert not final.exists()
    assert final.read_text() == "first"
    plain = tmp_path / "plain"
    plain.touch()
    assert os.stat(final).st_mode == os.stat(plain).st_mode

    def fail():
        with atomic_path(final) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert final.read_text() == "first"
    assert list(final.parent.iterdir()) == [final]


def test_nothing_written_is_an_error(tmp_path):
    with pytest.raises(OSError, match="No such file") as caught, atomic_path(tmp_path / "a.csv"):
        pass
    assert caught.value.filename == str(tmp_path / "a.csv")
    assert list(tmp_path.iterdir()) == []


def test_errors_without_a_number_keep_their_reason(tmp_path):
    with pytest.raises(OSError, match="encoder error") as caught, atomic_path(tmp_path / "a.png"):
        raise OSError("encoder error -2")
    assert caught.value.filename == str(tmp_path / "a.png")


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    kept = [tmp_path / ".hidden", tmp_path / ".my.tmp.png", tmp_path / "a.tmp.png"]
    for path in [*kept, tmp_path / ".0123456789abcdef.tmp.png"]:
        path.touch()
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_write_csv(tmp_path):
    path = tmp_path / "new" / "t.csv"
    rows = [("a,b", 0.1, None), ("\udcff", math.nan, 3), {"x": np.float64(1e-9), "y": 2, "z": True}.values()]
    write_csv(path, ("x", "y", "z"), iter(rows))
    assert path.read_bytes() == b'x,y,z\n"a,b",0.1,\n\xff,,3\n1e-09,2,True\n'

    def broken():
        yield ("whole", 1)
        raise KeyError

    with pytest.raises(KeyError):
        write_csv(path, ("x", "y"), broken())
    assert path.read_bytes().startswith(b"x,y,z\n")
    assert list(path.parent.iterdir()) == [path]


def test_attempt():
    def refuse():
        raise InputError("folder/a.png: it is\nempty")

    assert attempt("folder/a.png", refuse) == Skipped("folder/a.png", "it is empty")
    assert attempt("folder/a.png", lambda: 7) == 7
    with pytest.raises(KeyError):
        attempt("folder/a.png", lambda: {}["missing"])
