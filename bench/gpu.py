"""Check and measure the package on a CUDA device: one table, and bench/results/NAME.json for the docs.

    python -m mclc_gpu.bench.gpu bench/results/NAME.json

prints the table of such a file. Each part runs in a process of its own, so that an error of the device, or a
part that hangs, costs its own rows only.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from mclc_gpu.bench.compare import Row, circumstances, markdown, rounded
from mclc_gpu.bench.dataset import open_context
from mclc_gpu.bench.gpu_parts import ABSENT, PARTS, PEER_CORES, ROOT, Session, failure, row
from mclc_gpu.bench.recorder import DEVICE, recorded_device
from mclc_gpu.data.files import write_json
from mclc_gpu.data.synthetic import write_dataset

RESULTS = Path(__file__).resolve().parent / "results"
SECONDS = 345.0  # of all parts together
COLUMNS = {
    "part": "part",
    "work": "work",
    "value": "measured",
    "unit": "unit",
    "share": "share of peak",
    "bound": "bound",
    "peer": f"CPU, {PEER_CORES} cores",
    "ratio": "ratio",
    "note": "note",
}
LEGEND = (
    "share of peak: least time by the operations or bytes that the work needs, at the measured peaks, over "
    f"the time of its kernels. CPU: rate of the peer on {PEER_CORES} cores in the same run; ratio: to it."
)
_FRAMES, _QUICK_FRAMES = (128, 256), (4, 64)  # number and side of the synthetic frames


def gpu_check(
    device: torch.device,
    out: Path,
    command: str,
    images: Path | None = None,
    masks: Path | None = None,
    names: Path | None = None,
    quick: bool = False,
    seconds: float = SECONDS,
) -> dict[str, Any]:
    """Run every part, print the table and write the summary.

    Parameters
    ----------
    device : torch.device
        A CUDA device; for the CPU all parts run to their end on a recorded device, without times.
    out : Path
        Folder of gpu.json.
    command : str
        Command line, for the summary.
    images, masks, names : Path, optional
        Folders of frames and their true masks, and the list of those to use; default: synthetic frames.
    quick : bool
        Do very little work, to check that everything runs.
    seconds : float
        Time for all parts.

    Returns
    -------
    dict
        Content of gpu.json: circumstances, "frames", "seconds", and "rows" with the keys of `COLUMNS`.
    """
    started = time.perf_counter()
    live = device.type == "cuda"
    with tempfile.TemporaryDirectory(prefix="mclc-gpu-bench-") as scratch:
        source = f"{images}"
        if images is None or masks is None:
            count, side = _QUICK_FRAMES if quick else _FRAMES
            write_dataset(Path(scratch) / "data", count, 0, size=(side, side))
            images, masks, names = Path(scratch) / "data" / "images", Path(scratch) / "data" / "masks", None
            source = f"{count} synthetic frames of {side}x{side}"
        given = {
            "device": str(device) if live else "",
            "images": str(images.resolve()),
            "masks": str(masks.resolve()),
            "names": None if names is None else str(names.resolve()),
            "quick": quick,
        }
        rows: list[Row] = []
        for name, (_, share) in PARTS.items():
            left = started + seconds - time.perf_counter()
            rows += run_part(name, given, min(share * seconds, left), Path(scratch) / f"{name}.jsonl")
    summary = {
        **circumstances(device, command),
        "frames": source,
        "quick": quick,
        "seconds": time.perf_counter() - started,
        "rows": rows,
    }
    write_json(out / "gpu.json", summary)
    if live and not quick:
        RESULTS.mkdir(exist_ok=True)
        write_json(
            RESULTS / f"{re.sub(r'[^A-Za-z0-9]+', '-', str(summary['device'])).strip('-')}.json", summary
        )
    print(shown_summary(summary))
    return summary


def run_part(name: str, given: Mapping[str, Any], seconds: float, results: Path) -> list[Row]:
    """Run a part in a process of its own; return its rows, also those before an error or a time-out."""
    print(f"gpu: {name}, up to {max(seconds, 0):.0f} s", file=sys.stderr, flush=True)
    if seconds < 10:
        return [{"part": name, **row(name, note="left out: no time")}]
    argument = json.dumps({"part": name, **given, "seconds": seconds - 8, "results": str(results)})
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "mclc_gpu.bench.gpu", "--part", argument],
            env={**environment, "PYTHONPATH": path}, stdout=errors, stderr=errors,
        )  # fmt: skip
        try:
            code = process.wait(seconds)
            end = "" if code == 0 else f"failed with code {code}"
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            end = "stopped: no time"
        errors.seek(0)
        text = errors.read().strip()
    lines = results.read_text().splitlines() if results.exists() else []
    rows: list[Row] = [{"part": name, **json.loads(line)} for line in lines]
    if end:
        last = text.splitlines()[-1][:300] if text else ""
        rows.append({"part": name, **row(name, note=f"{end}: {last}" if last else end)})
    return rows


def _part(argument: str) -> None:
    """Run a part in this process and write its rows as they come."""
    given = json.loads(argument)
    live = bool(given["device"])
    device = torch.device(given["device"]) if live else DEVICE
    names = None if given["names"] is None else Path(given["names"])
    measure, _ = PARTS[given["part"]]
    with (
        open(given["results"], "w", encoding="utf-8") as results,
        open_context(Path(given["images"]), Path(given["masks"]), names, device, given["quick"]) as context,
        nullcontext() if live else recorded_device() as record,
    ):
        try:
            for found in measure(Session(context, given["seconds"], record)):
                results.write(json.dumps(found) + "\n")
                results.flush()
        except Exception as error:
            results.write(json.dumps(row(given["part"], note=failure(error))) + "\n")
            raise


def table(rows: Sequence[Row]) -> str:
    """Format the rows as a Markdown table."""
    names = [
        name for name in COLUMNS if name != "note" and any(found[name] not in (None, "") for found in rows)
    ]
    cells, notes = [], ["note", "----"]
    for found in rows:
        share = found["share"]
        text = {name: rounded(found[name]) for name in names}
        text["share"] = f"{share:.1%}" if isinstance(share, float) else ""
        cells.append([text[name] for name in names])
        notes.append(str(found["note"]))
    lines = markdown([COLUMNS[name] for name in names], cells, left=2).splitlines()
    return "\n".join(f"{line} {note} |" for line, note in zip(lines, notes, strict=True))


def shown_summary(summary: Mapping[str, Any]) -> str:
    """Format a summary of `gpu_check` for the docs: circumstances, table and legend."""
    versions = ", ".join(f"{name} {known}" for name, known in summary["versions"].items() if known)
    device = summary["device"] if summary["device"] != "cpu" else f"no CUDA device ({ABSENT})"
    head = f"{device}; {summary['processor']}, {summary['cores']} cores; {versions}; {summary['date']}"
    about = (
        f"{summary['frames']}; commit {summary['commit']}; `{summary['command']}`: {summary['seconds']:.0f} s"
    )
    return f"{head}\n{about}\n\n{table(summary['rows'])}\n\n{LEGEND}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of a file, or run one part."""
    parser = argparse.ArgumentParser(
        prog="python -m mclc_gpu.bench.gpu", description="print a table of results"
    )
    parser.add_argument("file", type=Path, nargs="?", help="file in bench/results/")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.part:
        _part(options.part)
    elif options.file:
        print(shown_summary(json.loads(options.file.read_text(encoding="utf-8"))))
    else:
        parser.error("name a file in bench/results/")


if __name__ == "__main__":
    main()
