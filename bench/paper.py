"""Tables of Li et al. (ICCV 2023), their printed numbers beside those measured here.

    mclc-gpu bench --suite paper --table 5 --set NUAA-SIRST/ --out tables/

Every cell is measured once, kept as tables/cells/SET/NAME.json and shared by all tables; a command that was
killed continues where it stopped. Tables are written after each cell, as Markdown and JSON.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mclc_gpu.bench.compare import circumstances, machine, markdown
from mclc_gpu.bench.config import BenchOptions
from mclc_gpu.bench.paper_cells import (
    FULL,
    LABELS,
    SALIENT,
    Cell,
    Cells,
    Maker,
    Source,
    schedule_of,
    training_config,
)
from mclc_gpu.bench.paper_sets import SECONDS_PER_MASK, SECONDS_PER_POINT, PaperSet, open_sets
from mclc_gpu.bench.printed import DETECTORS, LABEL_IOU
from mclc_gpu.classical.config import METHODS
from mclc_gpu.data.files import atomic_path, write_json
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.backend import pick_device
from mclc_gpu.networks.zoo import NETWORKS
from mclc_gpu.runs import locked

NETWORKS_OF_PAPER = ("acm", "resunet", "dnanet", "isnet", "uiunet")
METHODS_OF_PAPER = ("tophat", "wslcm", "mslstipt", "nram", "pstnn")
STUDIED = ("acm", "dnanet")  # networks of the tables that study labels
SEARCHED = 10  # most true masks that the search of label settings takes
LABEL_NAMES = {
    FULL: "true masks",
    "point": "clicked pixel",
    "kmeans": "K-means",
    "superpixel": "SuperPixel",
    "grabcut": "GrabCut",
    "mc": "MCLC without CRF",
    "mclc": "MCLC",
    "default": "preset default",
    **{name: f"masks of {name}" for name in SALIENT},
}
_LEGEND = (
    "IoU and Pd in percent, Fa in false-alarm pixels per million; labels: IoU of the labels of the train "
    "images. printed: by Li et al.; blank where their number is not known here. Detectors are those at the "
    "end of training, with one seed and the threshold of their checkpoint. MCLC uses the targets' true size "
    "categories, as the paper does; preset default uses the clicks alone."
)


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes
    ----------
    method, supervision : str
    labels, test : Cell or None
        Quality of the labels on the train images, and of the detector on the test images.
    printed : dict of str to float
        Numbers of the paper where they are known: "labels", "iou", "pd", "fa", as the table shows them.
    """

    method: str
    supervision: str
    labels: Cell | None = None
    test: Cell | None = None
    printed: dict[str, float] | None = None


def _labels_printed(data: PaperSet, name: str) -> dict[str, float]:
    value = LABEL_IOU.get(name, {}).get(data.name)
    return {} if value is None or not data.comparable else {"labels": 100 * value}


def _printed(data: PaperSet, name: str, labels: str) -> dict[str, float]:
    known = DETECTORS.get(name, {}).get(data.name)
    scores = known._asdict() if known and data.comparable else {}
    return {**_labels_printed(data, labels), **scores}


def label_quality(maker: Maker) -> Iterator[Row]:
    """Yield the rows of Table 1: labels of the train images, step by step."""
    steps = {"point": "clicked pixel", "superpixel": "LCA", "mc": "+ Monte Carlo", "mclc": "+ CRF"}
    keys = {"superpixel": "lca"}
    for name, title in {**steps, "default": LABEL_NAMES["default"]}.items():
        printed = _labels_printed(maker.data, keys.get(name, name))
        yield Row(title, "point", maker.labels(Source(name)), None, printed)


def detectors_by_labels(maker: Maker) -> Iterator[Row]:
    """Yield the rows of Table 2: detectors trained on the labels of Table 1, and on true masks."""
    for network in STUDIED:
        for name in (FULL, "point", "superpixel", "mc", "mclc", "default"):
            yield _detector(maker, network, Source(name))


def clicks(maker: Maker) -> Iterator[Row]:
    """Yield the rows of Table 3: clicks on the centers of the targets, and beside them."""
    for name in ("mclc", "default"):
        for network in STUDIED:
            for real in (False, True):
                text = f"{LABEL_NAMES[name]}, {'real' if real else 'ideal'} clicks"
                yield _detector(maker, network, Source(name, real=real), text)


def labeling_time(maker: Maker) -> Iterator[Row]:
    """Yield the rows of Table 4: masks or points that take an annotator the same time.

    The longest time is that of a point for every target of the train images.
    """
    total = sum(maker.data.targets.values())
    for points in dict.fromkeys(max(total // part, 1) for part in (4, 2, 1)):
        seconds = points * SECONDS_PER_POINT
        masks = max(int(seconds / SECONDS_PER_MASK), 1)
        known = max(min(SEARCHED, masks // 2), 1)
        left = int((seconds - known * SECONDS_PER_MASK) / SECONDS_PER_POINT)
        for network in STUDIED:
            full = Source(FULL, targets=masks)
            yield _detector(maker, network, full, f"{masks} masks, {seconds:.0f} s")
            for name in ("mclc", "default"):
                title = LABEL_NAMES[name]
                source = Source(name, targets=None if points == total else points)
                yield _detector(maker, network, source, f"{points} points, {seconds:.0f} s: {title}")
                if left > 0:
                    text = f"{left} points and {known} masks, {seconds:.0f} s: {title}, searched"
                    source = Source(name, targets=left, searched=known)
                    yield _detector(maker, network, source, text)


def all_methods(maker: Maker) -> Iterator[Row]:
    """Yield the rows of Table 5: untrained methods, and all networks with all labels."""
    for method in dict.fromkeys((*METHODS_OF_PAPER, *METHODS)):
        cell = maker.method(method) if method in METHODS else None
        yield Row(method, "none", test=cell, printed=_printed(maker.data, method, method))
    for network in NETWORKS_OF_PAPER:
        for name in (FULL, "kmeans", "superpixel", "grabcut", "mclc", "default"):
            yield _detector(maker, network, Source(name))


def salient_networks(maker: Maker) -> Iterator[Row]:
    """Yield the rows of Table 6: masks of salient-object networks in place of labels."""
    for network in ("resunet", "dnanet"):
        for name in (*SALIENT, "mclc", "default"):
            if name in LABELS or name in NETWORKS:
                yield _detector(maker, network, Source(name))


def _detector(maker: Maker, network: str, source: Source, text: str | None = None) -> Row:
    supervision = "full" if source.name == FULL else "point"
    labels = None if source.name == FULL else maker.labels(source)
    ideal = source.targets is None and not source.real
    printed = _printed(maker.data, f"{network}-{source.name}", source.name) if ideal else {}
    title = f"{network} + {text or LABEL_NAMES[source.name]}"
    return Row(title, supervision, labels, maker.detector(network, source), printed)


@dataclass(frozen=True)
class Table:
    """A table of the paper: its content, and its rows for a data set."""

    title: str
    rows: Callable[[Maker], Iterator[Row]]


TABLES = {
    1: Table("Quality of the labels", label_quality),
    2: Table("Detectors trained on these labels", detectors_by_labels),
    3: Table("Ideal and real clicks", clicks),
    4: Table("Fixed labeling time", labeling_time),
    5: Table("Methods and label makers", all_methods),
    6: Table("Salient-object networks with points", salient_networks),
}


def run_paper(options: BenchOptions, command: str) -> None:
    """Measure the chosen cells of the chosen tables, and write and print the tables.

    Raises
    ------
    InputError
        A data set cannot be used, no cell has a name as chosen, or cells in the folder have other settings.
    """
    device = pick_device(options.device)
    with locked(options.out, "bench"):
        sets = open_sets(options.set, options.split, options.out, options.quick)
        makers = [
            Maker(one, options.out, training_config(one, options.epochs, options.mpixels), options.device)
            for one in sets
        ]
        numbers = options.table or tuple(TABLES)
        content = {number: {m.data.key: [*TABLES[number].rows(m)] for m in makers} for number in numbers}
        cells = Cells(options.out, options.quick)
        chosen = _chosen(content, options.only)
        about = circumstances(device, command)
        head = f"```sh\n{command}\n```\n\n{machine(device)}, {about['date'][:10]}."
        for place, cell in enumerate(chosen, 1):
            print(f"paper: {place} of {len(chosen)}: {cell.name}", file=sys.stderr, flush=True)
            if cells.measure(cell):
                _write(options.out, content, makers, cells, head, about)
        texts = _write(options.out, content, makers, cells, head, about)
    print("\n\n".join(texts))


def _chosen(content: dict[int, dict[str, list[Row]]], only: Sequence[str]) -> list[Cell]:
    """Return the cells whose names contain one of the given texts, or all; each once, in order."""
    cells: dict[str, Cell] = {}
    for of_sets in content.values():
        for rows in of_sets.values():
            for row in rows:
                cells |= {cell.name: cell for cell in (row.labels, row.test) if cell is not None}
    chosen = [cell for name, cell in cells.items() if not only or any(text in name for text in only)]
    if not chosen:
        raise InputError(f"--only {' '.join(only)}: no cell has such a name; there are {', '.join(cells)}")
    return chosen


def _write(
    out: Path,
    content: dict[int, dict[str, list[Row]]],
    makers: Sequence[Maker],
    cells: Cells,
    head: str,
    about: dict[str, Any],
) -> list[str]:
    """Write all tables as they stand; return their text."""
    texts = []
    for number, of_sets in content.items():
        parts = [f"# Table {number}: {TABLES[number].title}", head]
        found = []
        for maker in makers:
            rows = [_measured(row, cells) for row in of_sets[maker.data.key]]
            parts += [f"## {_about(maker)}", _formatted(rows)]
            found.append({"set": maker.data.key, "train": maker.config.settings(), "rows": rows})
        reasons = sorted(f"- {name}: {why}" for name, why in cells.failed.items())
        failed = ["Failed:\n" + "\n".join(reasons)] if reasons else []
        text = "\n\n".join([*parts, _LEGEND, *failed])
        texts.append(text)
        with atomic_path(out / f"table-{number}.md") as temporary:
            temporary.write_text(f"{text}\n", encoding="utf-8")
        write_json(out / f"table-{number}.json", {**about, "table": number, "sets": found})
    return texts


def _about(maker: Maker) -> str:
    data = maker.data
    text = f"{data.name}, split {data.split}; detectors: {schedule_of(maker.config)}"
    if data.quick:
        return f"{text} (--quick: the scores mean nothing)"
    return text if data.comparable else f"{text} (the paper's numbers are of another split)"


def _measured(row: Row, cells: Cells) -> dict[str, Any]:
    """Return a row for JSON: scores as the paper prints them, and why those that are missing are."""
    found: dict[str, Any] = {
        "method": row.method,
        "supervision": row.supervision,
        "printed": row.printed or {},
    }
    for part, cell, names in (("labels", row.labels, ("iou",)), ("test", row.test, ("iou", "pd", "fa"))):
        content = cell and cells.find(cell)
        if cell is not None:
            found[f"{part}_cell"] = cell.name
            if content is None:
                found[f"{part}_missing"] = cells.failed.get(cell.name, "not run")
        if content:
            for name in names:
                value = content[name]
                scaled = None if value is None else value * (1e6 if name == "fa" else 100)
                found["labels" if part == "labels" else name] = scaled
    return found


_COLUMNS = {"labels": "labels", "iou": "IoU", "pd": "Pd", "fa": "Fa"}


def _formatted(rows: Sequence[dict[str, Any]]) -> str:
    """Format rows; each score has a column of ours and one of the paper, if any row has such a score."""
    used = [
        name
        for name in _COLUMNS
        if any(
            f"{'labels' if name == 'labels' else 'test'}_cell" in row or name in row["printed"]
            for row in rows
        )
    ]
    header = ["method", "supervision"]
    lines = [[row["method"], row["supervision"]] for row in rows]
    for name in used:
        header += [_COLUMNS[name], "printed"]
        for row, line in zip(rows, lines, strict=True):
            line += [_score(row, name), _number(row["printed"].get(name))]
    return markdown(header, lines, left=2)


def _score(row: dict[str, Any], name: str) -> str:
    part = "labels" if name == "labels" else "test"
    if name in row:
        return _number(row[name])
    if (why := row.get(f"{part}_missing")) is None:
        return "not available" if name in row["printed"] else ""
    return "not run" if why == "not run" else "failed"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
