"""The report on a set of masks: what it finds in them, and the page that it becomes."""

import base64
import csv
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mclc_gpu.cli.main import main
from mclc_gpu.data.annotations import Point
from mclc_gpu.data.names import find_files
from mclc_gpu.data.points import write_points
from mclc_gpu.errors import InputError
from mclc_gpu.labels.folder import LabelRun
from mclc_gpu.report import sheets
from mclc_gpu.report.check import ImageCheck, LabelCheck, TopK, check_image
from mclc_gpu.report.page import LabelReport, report_labels
from mclc_gpu.report.sheets import target_row

SIDE = 96
VOID = {"meta", "img"}
HOSTILE = 'a<img src=x onerror="alert(1)">&'
# A target of every flag: its click, the rows and columns of its mask, confidence, flags.
CLICKS = [
    (Point(10, 10, "spot"), (8, 13, 8, 13), 0.9, []),
    (Point(40, 10, "spot"), None, 0.9, ["no mask of its own"]),
    (Point(70, 10, "spot"), (15, 19, 69, 73), 0.9, ["click outside its mask"]),
    (Point(9, 40, "spot"), (38, 43, 8, 18), 0.9, ["two clicks on one mask"]),
    (Point(16, 40, "spot"), (38, 43, 8, 18), 0.9, ["two clicks on one mask"]),
    (Point(40, 40, "extended"), (38, 43, 38, 43), 0.9, ["area does not fit the category"]),
    (Point(70, 40, "spot"), (38, 42, 70, 81), 0.9, ["mask touches the border of its window"]),
    (Point(10, 70, "extended"), (68, 76, 9, 24), 0.9, ["click far from the center of its mask"]),
    (Point(50, 70, "spot"), (68, 73, 48, 53), 0.4, ["low confidence"]),
    (Point(80, 70, "spot"), (68, 73, 82, 86), 0.7, ["click outside its mask"]),
    (Point(80, 90, "point"), (89, 92, 81, 82), 0.7, []),  # beside the mask: a matter of the hand
]


def image_of(boxes, value=255):
    image = np.zeros((SIDE, SIDE), np.uint8)
    for box in boxes:
        if box is not None:
            image[box[0] : box[1], box[2] : box[3]] = value
    return image


def write_run(folder, points, masks, rows=None, settings=None):
    """A label run's files; rows of targets.csv are (estimated, confidence), None: no such file."""
    for name in ("masks", "tpm"):
        (folder / name).mkdir(parents=True)
    write_points(folder / "points.csv", points)
    summary = {
        "settings": {"seed": 3, "maker": "mclc", **(settings or {})},
        "images": len(points),
        "trials": 1000,
        "estimated_categories": 0,
        "device": "cpu (2 threads)",
        "seconds": {"total": 1.25, "startup": 2.5},
        "skipped": [{"file": "gone.png", "why": "<b>it is not there</b>"}],
    }
    (folder / "label.json").write_text(json.dumps(summary))
    for stem, mask in masks.items():
        Image.fromarray(mask).save(folder / "masks" / f"{stem}.png")
        Image.fromarray((mask // 255).astype(np.uint16) * 49152).save(folder / "tpm" / f"{stem}.png")
    if rows is not None:
        with (folder / "targets.csv").open("w", newline="") as file:
            table = csv.writer(file)
            header = ("image", "target", "x", "y", "category", "estimated", "area", "confidence", "trials")
            table.writerow(header)
            for stem, own in points.items():
                for number, (point, row) in enumerate(zip(own, rows[stem], strict=True)):
                    table.writerow([stem, number, point.x, point.y, point.category, row[0], 0, row[1], 0])
    return folder


@pytest.fixture
def run(tmp_path):
    """A run of one image, whose name is markup, with all of `CLICKS`; the truth is a row off."""
    mask = image_of([box for _, box, _, _ in CLICKS])
    points = {HOSTILE: [point for point, _, _, _ in CLICKS], "empty": []}
    rows = {HOSTILE: [(0, confidence) for _, _, confidence, _ in CLICKS], "empty": []}
    folder = write_run(tmp_path / "run", points, {HOSTILE: mask, "empty": image_of([])}, rows)
    truth = image_of([None if box is None else (box[0], box[1] + 1, *box[2:]) for _, box, _, _ in CLICKS])
    for name, pixels in (("images", mask // 2 + 20), ("truth", truth)):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / f"{HOSTILE}.png")
        Image.fromarray(image_of([])).save(tmp_path / name / "empty.png")
    return folder


class Page(HTMLParser):
    """Parses a page, and fails on tags that do not match."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.cards: list[str] = []
        self.figures: list[Image.Image] = []
        self.text = ""
        source = path.read_text(encoding="utf-8")
        self.feed(source)
        self.close()
        assert self.open == []
        assert not re.search(r"(src|href|url|@import)\W{1,2}(?!data:image/png;base64,)\w+:", source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            head, _, data = dict(attrs)["src"].partition(",")
            assert head == "data:image/png;base64"
            assert dict(attrs)["alt"]
            self.figures.append(Image.open(io.BytesIO(base64.b64decode(data))))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data
            if self.open[-1] == "strong":
                self.cards.append(data)


def test_every_flag_is_found_and_no_other(run):
    labels = LabelRun.open(run)
    mask = np.array(Image.open(run / "masks" / f"{HOSTILE}.png")) > 0
    # The published windows are drawn at random; the mask at its window's right border is cut there.
    window = labels.windows(HOSTILE, mask.shape)[6]
    mask[38:42, window.right :] = False
    found = check_image(HOSTILE, mask, labels=labels).targets
    assert [[kind for kind, _ in target.flags] for target in found] == [flags for *_, flags in CLICKS]
    assert [target.index for target in found] == list(range(len(CLICKS)))
    assert all(math.isnan(target.iou) for target in found)
    assert found[0].area == 25
    assert found[1].area == 0
    assert found[3].area == found[4].area == 50


def test_pieces_without_a_click(run):
    """One in the window of the first target, and one far from all."""
    mask = image_of([(8, 13, 8, 13), (16, 18, 10, 12), (26, 28, 90, 94)]) > 0
    found = check_image(HOSTILE, mask, image_of([(26, 28, 90, 94)]) > 0, labels=LabelRun.open(run)).targets
    alone, first = (target for target in found if target.index in (None, 0))
    assert alone.flags == (("mask without a click", "8 px"),)
    assert (alone.iou, alone.area, first.area) == (1, 8, 25)
    assert first.flags == (("loose pieces beside its mask", "4 px in 1 of them"),)


def test_an_estimated_category_is_no_claim(run):
    path = run / "targets.csv"
    path.write_text(path.read_text().replace(",extended,0,", ",extended,1,"))
    labels = LabelRun.open(run)
    found = check_image(HOSTILE, image_of([(38, 43, 38, 43)]) > 0, labels=labels).targets
    assert found[5].flags == ()


def test_iou_is_of_the_mask_at_the_click(run):
    labels = LabelRun.open(run)
    mask = image_of([(8, 13, 8, 13), (30, 40, 30, 40)]) > 0
    truth = image_of([(8, 13, 8, 18), (60, 70, 60, 70)]) > 0
    found = check_image(HOSTILE, mask, truth, labels=labels).targets
    assert found[0].iou == 25 / 50
    assert found[1].iou == 0  # a click without a mask


def test_without_clicks_the_true_targets_count():
    mask = image_of([(8, 13, 8, 13), (30, 40, 30, 40)]) > 0
    truth = image_of([(8, 13, 8, 18), (60, 70, 60, 70)]) > 0
    found = check_image("a", mask, truth).targets
    assert [(t.index, t.iou, t.area) for t in found] == [(None, 0.5, 25), (None, 0.0, 0), (None, 0.0, 100)]
    assert [[kind for kind, _ in t.flags] for t in found] == [[], ["missed target"], ["false alarm"]]
    assert (found[1].x, found[1].y) == (64.5, 64.5)


def test_reliability_counts_pixels_above_0():
    tpm = np.zeros((4, 5), np.float32)
    tpm[0], tpm[1], tpm[2, 0] = 0.25, 1.0, 0.2
    truth = np.zeros((4, 5), bool)
    truth[0, :2], truth[1], truth[3] = True, True, True
    pixels, true, summed = check_image("a", truth, truth, tpm).reliability
    assert pixels[2] == 6
    assert true[2] == 2
    assert summed[2] == pytest.approx(1.45)
    assert pixels[9] == true[9] == summed[9] == 5
    assert pixels.sum() == 11


def test_a_figure_shows_all_of_a_target_and_stays_in_the_image():
    mask = image_of([(0, 3, 0, 3), (90, 96, 40, 96)]) > 0
    corner, long = check_image("a", mask, mask).targets
    assert corner.view == (0, 0, 25, 25)
    top, left, bottom, right = long.view
    assert bottom == right == SIDE
    assert left <= 40
    assert top < 90


def test_top_keeps_the_first_of_equals():
    top = TopK[str](2)
    for key, item in ((1, "a"), (3, "b"), (3, "c"), (3, "d"), (2, "e")):
        top.add((key,), item)
    assert top.items() == ["b", "c"]


def test_the_page(run):
    images, truth = find_files(run.parent / "images"), find_files(run.parent / "truth")
    check = report_labels(LabelRun.open(run, images, truth))
    page = Page(run / "report.html")
    assert check.flagged == 9
    assert check.targets == 11
    assert check.images == 2
    assert f"{HOSTILE}:8" in page.cards
    assert "<b>it is not there</b>" in page.text
    assert page.tags.count("img") == 11  # the hostile name made none
    assert len(page.figures) == len(page.cards) == 11
    assert {figure.size for figure in page.figures} == {(462, 150)}
    for words in ("Review these first", "nIoU", "low confidence: 0.40", "1,000", "cpu (2 threads)", "seed"):
        assert words in page.text
    order = ("Review these first", "Least confident", "pixels are true", "it is not there")
    places = [page.text.index(words) for words in order]
    assert places == sorted(places)
    before = (run / "report.html").read_bytes()
    report_labels(LabelRun.open(run, images, truth))
    assert (run / "report.html").read_bytes() == before


def test_the_ends_of_the_iou_have_figures(run):
    truth = find_files(run.parent / "truth")
    report = LabelReport({HOSTILE: run / "masks" / f"{HOSTILE}.png"}, truth, {})
    mask, true = (np.array(Image.open(folder[HOSTILE])) > 0 for folder in (report.masks, truth))
    report.check.add(report.inspect(HOSTILE, mask, true))
    report.write(run / "report.html")
    text = Page(run / "report.html").text
    assert text.index("Lowest IoU of the others") < text.index("Highest IoU")


def test_the_page_without_truth(run):
    report_labels(LabelRun.open(run, find_files(run.parent / "images")))
    page = Page(run / "report.html")
    assert "nIoU" not in page.text
    assert "Lowest IoU" not in page.text
    assert len(page.figures) == 11
    assert "Least confident of the others" in page.text


def test_the_page_is_bounded(run):
    """However many targets, there are 40 figures and a table of fixed length."""
    images, truth = find_files(run.parent / "images"), find_files(run.parent / "truth")
    labels = LabelRun.open(run)
    masks = {stem: run / "masks" / f"{stem}.png" for stem in labels.rows}
    report = LabelReport(masks, truth, images, labels)
    mask, true = (np.array(Image.open(folder[HOSTILE])) > 0 for folder in (masks, truth))
    found = check_image(HOSTILE, mask, true, labels=labels).targets
    for repeat in range(400):
        # Other places make other targets of them.
        moved = [
            type(t)(**{n: getattr(t, n) for n in t.__slots__} | {"index": 0, "x": repeat % 96}) for t in found
        ]
        report.check.add(ImageCheck(moved, None))
    report.write(run / "report.html")
    page = Page(run / "report.html")
    assert report.check.targets == 4400
    assert "4,400 targets" in page.text
    assert len(page.figures) <= 40
    assert page.tags.count("tr") < 250


def test_runs_without_a_table_of_targets(run):
    (run / "targets.csv").unlink()
    check = report_labels(LabelRun.open(run, {}))
    page = Page(run / "report.html")
    assert check.flags["low confidence"] == 0
    assert check.flags["two clicks on one mask"] == 2
    assert "low confidencenot known" in page.text
    assert {figure.size for figure in page.figures} == {(306, 150)}  # without images: TPM and outlines


@pytest.mark.parametrize("text", ["image,target\na,1\n", "image,estimated,confidence\na,0,0.5\n", "\0"])
def test_a_damaged_table_of_targets_is_named(run, text):
    (run / "targets.csv").write_text(text)
    with pytest.raises(InputError, match=r"targets\.csv.*label again"):
        report_labels(LabelRun.open(run, {}))


def test_unreadable_files_are_told(run, tmp_path):
    (run / "tpm" / f"{HOSTILE}.png").write_bytes(b"no image")
    check = report_labels(LabelRun.open(run, {}, find_files(tmp_path / "truth")))
    assert check.targets == 11
    assert not check.reliability.any()
    assert "TPM of" in Page(run / "report.html").text
    (run / "masks" / f"{HOSTILE}.png").unlink()
    assert report_labels(LabelRun.open(run, {})).targets == 0
    assert "no such file" in Page(run / "report.html").text


def test_components_have_windows_of_their_own(tmp_path):
    settings = {"maker": "components", "components": {"radius": 5}}
    run = write_run(tmp_path / "run", {"a": [Point(50, 50, "extended")]}, {}, None, settings)
    window = LabelRun.open(run).windows("a", (96, 96))[0]
    assert (window.top, window.bottom, window.left, window.right) == (45, 56, 45, 56)
    found = check_image("a", image_of([(45, 56, 45, 56)]) > 0, labels=LabelRun.open(run)).targets
    assert [kind for kind, _ in found[0].flags] == ["mask touches the border of its window"]


def test_an_empty_check_has_a_page(tmp_path):
    LabelReport({}, {}, {}).write(tmp_path / "deep" / "report.html")
    assert "Masks: 0 images, 0 targets" in Page(tmp_path / "deep" / "report.html").text
    assert LabelCheck().urgent.items() == []


def words(*parts: object) -> list[str]:
    return [str(part) for part in parts]


def test_label_writes_it_and_knows_it(run, tmp_path, capsys):
    out = tmp_path / "out"
    label = words("label", "--images", tmp_path / "images", "--points", run / "points.csv", "--out", out)
    label += ["--preset", "point"]
    out.mkdir()
    (out / "report.html").write_text("my own")
    assert main(label) == 2
    assert "report.html" in capsys.readouterr().err
    (out / "report.html").unlink()
    assert main(label) == 0
    assert "targets to review first" in capsys.readouterr().out
    assert "Labels: 2 images, 11 targets" in Page(out / "report.html").text
    assert main([*label, "--overwrite", "--no-report"]) == 0
    assert not (out / "report.html").exists()


def test_score_reports_on_the_run_that_the_masks_lie_in(run, tmp_path):
    pairs = words("score", "--pred", run / "masks", "--truth", tmp_path / "truth")
    page = tmp_path / "score.html"
    assert main([*pairs, *words("--report", page, "--images", tmp_path / "images")]) == 0
    assert f"{HOSTILE}:3" in Page(page).cards
    # Elsewhere the run has to be named.
    (run / "masks").rename(tmp_path / "moved")
    pairs = words("score", "--pred", tmp_path / "moved", "--truth", tmp_path / "truth", "--report", page)
    assert main(pairs) == 0
    assert "missed target" in Page(page).text
    assert f"{HOSTILE}:3" not in Page(page).cards
    assert main([*pairs, "--labels", str(run)]) == 0
    assert f"{HOSTILE}:3" in Page(page).cards


def test_score_reports_on_probability_maps(run, tmp_path):
    page = tmp_path / "score.html"
    pairs = words("score", "--pred", run / "tpm", "--truth", tmp_path / "truth", "--threshold", 0.5)
    assert main([*pairs, "--report", str(page)]) == 0
    assert "TPM 0.750" in Page(page).text
    assert f"{HOSTILE}:3" in Page(page).cards


def test_score_refuses_what_only_the_report_needs(run, tmp_path, capsys):
    pairs = words("score", "--pred", run / "masks", "--truth", tmp_path / "truth")
    assert main([*pairs, "--labels", str(run)]) == 2
    assert "--report" in capsys.readouterr().err
    assert main([*pairs, *words("--report", tmp_path / "a.html", "--labels", tmp_path)]) == 2
    assert "no finished label run" in capsys.readouterr().err


def test_the_overview_shows_the_window_of_the_label(tmp_path, monkeypatch):
    settings = {"maker": "components", "components": {"radius": 5}}
    points = {"a": [Point(50, 50, "point")]}
    run = write_run(tmp_path / "run", points, {"a": image_of([(49, 52, 49, 52)])}, None, settings)
    Image.fromarray(image_of([(49, 52, 49, 52)])).save(tmp_path / "a.png")
    rows = []
    monkeypatch.setattr(sheets, "target_row", lambda *given: rows.append(given) or target_row(*given))
    sheets.write_overview(LabelRun.open(run, {"a": tmp_path / "a.png"}), "the run")
    ((_, image, tpm, mask, click, truth, category),) = rows
    assert image.shape == tpm.shape == mask.shape == (5 + 1 + 5 + 8, 19)
    assert (click, truth, category) == ((9, 9), None, "point")
    assert Image.open(run / "overview.png").size[0] == 990
