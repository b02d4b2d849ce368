"""Locks and journals of runs."""

import signal
import subprocess
import sys

import pytest

from mclc_gpu.cli.main import main
from mclc_gpu.data.synthetic import write_dataset
from mclc_gpu.errors import InputError
from mclc_gpu.runs import Journal, JournalEntries, RunLayout, close_run, completed_run, locked, open_run

HOLD = "import sys; from pathlib import Path; from mclc_gpu.runs import locked\n"
HOLD += "with locked(Path(sys.argv[1]), sys.argv[2]): print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def holder(tmp_path):
    """Yield another process that holds the lock of a label run in a folder."""
    words = [sys.executable, "-c", HOLD, str(tmp_path / "out"), "label"]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_run_is_refused_and_nothing_is_touched(holder, tmp_path, capsys):
    write_dataset(tmp_path / "data", 2, 0, size=(32, 32), test_share=0)
    before = sorted(tmp_path.rglob("*"))
    folders = "--images", tmp_path / "data" / "images", "--points-from-masks", tmp_path / "data" / "masks"
    words = ["label", *map(str, folders), "--out", str(tmp_path / "out")]
    for more in ((), ("--resume",), ("--overwrite",)):
        assert main([*words, *more]) == 2
        assert "another label run is active there; wait for it" in capsys.readouterr().err
        assert sorted(tmp_path.rglob("*")) == before
    with locked(tmp_path / "out", "predict"):  # other kinds of runs have files of their own
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert main(words) == 0
    assert not list((tmp_path / "out").glob(".*"))


def test_temporary_files_of_a_killed_run_are_removed_by_the_next_run(tmp_path):
    close_run(LAYOUT, tmp_path, {"fingerprint": "print"})
    left = tmp_path / ".0123456789abcdef.tmp.png"
    left.touch()
    assert completed_run(LAYOUT, tmp_path, "print") is not None
    assert not left.exists()


def test_the_lock_is_free_after_an_error(tmp_path):
    def fail():
        with locked(tmp_path, "label"):
            raise KeyError

    for _ in range(2):
        with pytest.raises(KeyError):
            fail()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be written"), locked(tmp_path / "file" / "out", "label"):
        pass


LAYOUT = RunLayout("label", ("masks",), ())


def test_the_last_record_of_an_image_counts(tmp_path):
    for rank, values in ((0, (1, 2)), (1, (3,))):
        with Journal(LAYOUT, tmp_path, "print", rank) as journal:
            for value in values:
                journal.append({"image": f"image {value % 2}", "value": value})
    with JournalEntries(LAYOUT.journals(tmp_path), "print") as entries:
        assert list(entries) == ["image 1", "image 0"]
        assert [entries[stem]["value"] for stem in entries] == [3, 2]
        assert "image 2" not in entries
    with open_run(LAYOUT, tmp_path, "print", resume=True, overwrite=False) as entries:
        assert [entries[stem]["value"] for stem in entries] == [3, 2]
    assert LAYOUT.journals(tmp_path) == [LAYOUT.journal(tmp_path)]


@pytest.mark.parametrize("torn", [b'{"image": "b', b'{"image": "b"}', b"\xff\xfe", b"[1]"])
def test_a_torn_last_line_is_dropped_and_other_damage_is_an_error(tmp_path, torn):
    with Journal(LAYOUT, tmp_path, "print") as journal:
        journal.append({"image": "a"})
    path = LAYOUT.journal(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    with open_run(LAYOUT, tmp_path, "print", resume=True, overwrite=False) as entries:
        assert list(entries) == ["a"]
    assert path.read_bytes() == whole
    path.write_bytes(whole + torn[:9] + b"\n" + b'{"image": "c"}\n')
    with pytest.raises(InputError, match="line 3 is damaged"):
        open_run(LAYOUT, tmp_path, "print", resume=True, overwrite=False)
    with pytest.raises(InputError, match="other settings"):
        open_run(LAYOUT, tmp_path, "another", resume=True, overwrite=False)
