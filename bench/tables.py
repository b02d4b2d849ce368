"""Tables of measured numbers as CSV files and in Markdown, and what a run was made on."""

import csv
import io
import math
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numba
import torch

from mclc_gpu.data.atomic import atomic_path

Cell = str | int | float | None
Row = dict[str, Cell]
_PACKAGES = (
    *("mclc-gpu", "torch", "triton", "numba", "numpy", "scikit-image", "pydensecrf"),
    *("opencv-python-headless", "opencv-contrib-python-headless", "fast-slic", "cuda-slic"),
)


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Rows of the same columns in full precision; None and NaN become empty cells."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if _is_empty(cell) else cell for key, cell in row.items()} for row in rows)
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """An aligned table that also reads well as plain text: the first columns flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        both = [*zip(cells, widths, strict=True)]
        padded = [cell.ljust(width) for cell, width in both[:left]]
        padded += [cell.rjust(width) for cell, width in both[left:]]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * width if place < left else "-" * (width - 1) + ":" for place, width in enumerate(widths)]
    return "\n".join(line(cells) for cells in (header, rule, *rows))


def shown(cell: Cell, digits: int) -> str:
    """A cell to read: numbers with so many decimals, nothing for None and NaN."""
    if _is_empty(cell):
        return ""
    return cell if isinstance(cell, str) else f"{cell:,.{digits}f}"


def rounded(cell: Cell) -> str:
    """A cell to read: a number with three digits, or all those before the point; text as it is."""
    if not isinstance(cell, float) or _is_empty(cell):
        return shown(cell, 0)
    size = abs(cell)
    if 0 < size < 0.001 or size >= 1e7:
        return f"{cell:.2e}"
    return shown(cell, 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3)


def machine(device: torch.device) -> str:
    """Processor and threads of this process, and the GPU if there is one in use."""
    text = f"{_processor()}, {numba.config.NUMBA_NUM_THREADS} threads"
    return f"{text}, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else text


def versions() -> str:
    """Python and the packages that the numbers rest on."""
    return ", ".join(f"{name} {known or 'not installed'}" for name, known in _versions().items())


def circumstances(device: torch.device, command: str) -> dict[str, Any]:
    """What a measurement was made on, for JSON; None for what the system does not tell."""
    sizes = getattr(os, "sysconf_names", {})
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if "SC_PHYS_PAGES" in sizes else None
    return {
        "command": command,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": _commit(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": numba.config.NUMBA_NUM_THREADS,
        "memory_bytes": memory,
        "os": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cuda": torch.version.cuda,
        "versions": _versions(),
    }


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"Python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _commit() -> str | None:
    """Of the checkout that this file lies in, marked where it was changed since; None outside of one."""
    folder = Path(__file__).resolve().parents[1]
    if not (folder / ".git").exists():
        return None
    try:
        told = [
            subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True
            ).stdout
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return told[0].strip() + (", changed" if told[1].strip() else "")


def _is_empty(cell: Cell) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
