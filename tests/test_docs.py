"""The commands and links of README.md, CONTRIBUTING.md and docs/ exist."""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mclc_gpu.cli.main import parser
from mclc_gpu.data.names import find_files
from mclc_gpu.data.synthetic import write_dataset

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> Iterator[list[str]]:
    """Yield the arguments of every `mclc-gpu` command that stands in a shell block, without comments."""
    for document in DOCUMENTS:
        blocks = re.findall(r"```sh\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
        for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
            argv = shlex.split(line, comments=True)
            if argv[:1] == ["mclc-gpu"]:
                yield argv[1:]


@pytest.mark.parametrize("argv", list(commands()), ids=" ".join)
def test_commands_have_these_options(argv: list[str]) -> None:
    parser().parse_args(argv)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {
        target
        for document in DOCUMENTS
        for target in re.findall(r"\bmake ([a-z-]+)\b", document.read_text(encoding="utf-8"))
    }
    assert {"demo", "test", "test-all"} <= named
    assert named - targets - {"of", "the"} == set()


def test_the_python_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path, count=2, seed=0, size=(64, 160))
    shutil.move(tmp_path / "images", tmp_path / "frames")
    frames = find_files(tmp_path / "frames")
    shutil.copy(next(iter(frames.values())), "frame.png")
    rows = ["image,x,y", *(f"{stem},40,30" for stem in frames)]
    Path("clicks.csv").write_text("\n".join(rows))
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(code, {})
    assert len(find_files(tmp_path / "labels" / "masks")) == 2


def test_the_layout_of_the_readme_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Layout")[2]
    folders = re.findall(r"^([a-z_]+/\S*) ", text, re.MULTILINE)
    assert len(folders) > 10
    assert [folder for folder in folders if not (ROOT / folder).is_dir()] == []
