"""Files appear whole or not at all."""

import os

import pytest

from mclc_gpu.data.atomic import atomic_path


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
    with pytest.raises(OSError, match="No such file"), atomic_path(tmp_path / "a.csv"):
        pass
    assert list(tmp_path.iterdir()) == []
