"""Tables of measured numbers as CSV files and in Markdown, and what a run was made on."""

import csv
import io
import math
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numba
import torch

from mclc_gpu.data.atomic import atomic_path

Cell = str | int | float | None
Row = dict[str, Cell]
_PACKAGES = ("mclc-gpu", "torch", "numba", "numpy", "scikit-image", "pydensecrf", "opencv-python-headless")


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Rows of the same columns in full precision; None and NaN become empty cells."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if _is_empty(cell) else cell for key, cell in row.items()} for row in rows)
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An aligned table that also reads well as plain text: the first column flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        return "| " + " | ".join([cells[0].ljust(widths[0]), *padded[1:]]) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(line(cells) for cells in (header, rule, *rows))


def shown(cell: Cell, digits: int) -> str:
    """A cell to read: numbers with so many decimals, nothing for None and NaN."""
    if _is_empty(cell):
        return ""
    return cell if isinstance(cell, str) else f"{cell:,.{digits}f}"


def machine(device: torch.device) -> str:
    """Processor and threads of this process, and the GPU if there is one in use."""
    text = f"{_processor()}, {numba.config.NUMBA_NUM_THREADS} threads"
    return f"{text}, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else text


def versions() -> str:
    """Python and the packages that the numbers rest on."""
    found = [f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} not installed")
    return ", ".join(found)


def _is_empty(cell: Cell) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
