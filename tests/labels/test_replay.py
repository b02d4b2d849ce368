"""The ways of targets to their masks: found again from a label run's files, drawn, shown by the command."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mclc_gpu.cli.main import main
from mclc_gpu.data.annotations import Point
from mclc_gpu.data.images import read_image, read_mask
from mclc_gpu.data.names import find_files
from mclc_gpu.data.synthetic import write_dataset
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.config import TrialConfig
from mclc_gpu.kernels.packed import PackedImages, Windows
from mclc_gpu.kernels.trials import run_trials
from mclc_gpu.labels.config import LabelConfig
from mclc_gpu.labels.folder import LabelRun, Target, mask_path, read_tpm, tpm_path
from mclc_gpu.labels.placing import place_targets
from mclc_gpu.labels.replay import find_targets, noisy_window, rank_targets, trace_targets
from mclc_gpu.report.sheets import trace_sheet

MASK, TRUTH, CLICK = (255, 176, 0), (64, 190, 255), (255, 45, 85)
TEXT = "PIL.ImageDraw.ImageDraw.text"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, 6, 7, size=(72, 80))
    return root


@pytest.fixture(scope="module")
def labels(data, tmp_path_factory) -> Path:
    return label(data, tmp_path_factory.mktemp("run") / "labels")


def label(data: Path, out: Path, *more: object) -> Path:
    source = [] if "--points" in more else ["--points-from-masks", data / "masks"]
    paper = [] if "--preset" in more else ["--preset", "paper", "--trials", "25"]
    words = ["label", "--images", data / "images", *source, "--out", out, *paper, *more]
    assert main([str(word) for word in words]) == 0
    return out


def show(data: Path, run: Path, out: Path, *more: object) -> int:
    words = ["show", "--labels", run, "--images", data / "images", "--out", out, *more]
    return main([str(word) for word in words])


def opened(data: Path, run: Path) -> LabelRun:
    return LabelRun.open(run, find_files(data / "images"), find_files(data / "masks"))


def processes_of(data: Path, folder: Path):
    run = opened(data, folder)
    return run, trace_targets(run, list(run.targets()), "cpu")


@pytest.mark.parametrize(
    ("more", "planned"),
    [
        ([], [1, 2, 20, 25]),
        (["--trials", "1"], [1]),
        (["--trials", "2", "--seed", "9"], [1, 2]),
        (["--method", "kmeans", "--noise", "pepper", "--intensity", "0.1"], [1, 2, 20, 25]),
        (["--noise", "gaussian", "--refine", "threshold", "--threshold", "0.5"], [1, 2, 20, 25]),
        (["--noise", "none"], []),
        (["--intensity", "0"], []),
        (["--category", "estimate"], [1, 2, 20, 25]),
        (["--stop-change", "0.3"], [1, 2, 20, 25]),
        (["--supervision", "multi-point"], [1, 2, 20, 25]),
        (["--supervision", "scribble"], [1, 2, 20, 25]),
        (["--supervision", "box"], [1, 2, 20, 25]),
        (["--preset", "lca"], []),
        (["--preset", "point", "--supervision", "box"], []),
        (["--preset", "default"], []),
        (["--preset", "default", "--supervision", "multi-point"], []),
        (["--preset", "default", "--category", "estimate"], []),
    ],
)
def test_the_runs_own_masks_are_found_again(data, tmp_path, more, planned):
    run, processes = processes_of(data, label(data, tmp_path / "run", *more))
    assert [process.target for process in processes] == list(run.targets())
    assert len(processes) > 3
    clustered = run.config.maker == "mclc"
    for process in processes:
        area = process.window.area
        assert process.changed == 0
        assert np.array_equal(process.mask, read_mask(mask_path(run.folder, process.target.stem))[area])
        assert [stage.planned for stage in process.stages] == planned
        assert (process.noisy is not None) == bool(planned)
        assert (process.segment is not None) == clustered
        assert (process.marks is not None) == ("--supervision" in more)
        if clustered:
            assert process.segment[process.window.click_row, process.window.click_column]
        if planned:
            assert np.array_equal(process.segment, process.stages[0].tpm > 0)
            assert process.point.seeds or np.isin(process.stages[0].tpm, (0, 1)).all()
            file = read_tpm(tpm_path(run.folder, process.target.stem))[area]
            assert (process.stages[-1].tpm <= file + 1e-4).all()
            assert np.abs(process.stages[-1].tpm - file).min() < 1e-4
            assert process.stages[-1].tpm.max() > 0
    sheet = trace_sheet(processes, run.config, "the run")
    panels = 2 + clustered + (1 + len(planned) if planned else 0)
    assert sheet.size[0] == 36 + panels * 156 - 6


def test_grabcut_is_shown_without_trials(data, tmp_path):
    pytest.importorskip("cv2")
    _, processes = processes_of(data, label(data, tmp_path / "run", "--preset", "grabcut"))
    for process in processes:
        assert process.changed == 0
        assert process.segment is process.noisy is None
        assert process.stages == []


def test_stages_are_those_of_the_stop_rule(data, tmp_path, monkeypatch):
    run, processes = processes_of(data, label(data, tmp_path / "run", "--stop-change", "0.3"))
    ends = {process.stages[-1].trials for process in processes}
    assert min(ends) < 25
    for process in processes:
        end = process.stages[-1].trials
        assert [stage.trials for stage in process.stages] == [min(k, end) for k in (1, 2, 20, 25)]
    written = []
    monkeypatch.setattr(TEXT, lambda self, at, words, *rest, **options: written.append(words))
    trace_sheet(processes, run.config)
    assert f"stopped after {min(ends)}" in written
    assert "stopped after 25" not in written


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize(
    "trial",
    [
        TrialConfig(),
        TrialConfig(noise="pepper", intensity=0.2),
        TrialConfig(noise="gaussian", intensity=0.1, shared_noise=True),
        TrialConfig(noise="gaussian", intensity=0.3),
        TrialConfig(method="kmeans", intensity=0.3, shared_noise=True),
    ],
)
def test_the_noisy_window_is_what_a_trial_clusters(dtype, color, trial):
    random = np.random.default_rng(4)
    y, x = np.mgrid[:40, :44]
    image = 60 + 120 * np.exp(-((y - 20) ** 2 + (x - 22) ** 2) / 12) + random.normal(0, 4, (40, 44))
    if color:
        image = np.stack([image, image * 0.8, image * 0.6 + 20], axis=2)
    image = (image * (1 if dtype == np.uint8 else 200)).astype(dtype)
    config = LabelConfig(trial=trial)
    (target,), _ = place_targets([image], [[Point(22, 20, "spot")]], ["frame"], config, 3)
    window = target.window
    row = [0, window.top, window.left, window.height, window.width, window.click_row, window.click_column, 0]
    whole = Windows.pack([row])
    alone = Windows.pack([[0, 0, 0, *row[3:]]])
    key = torch.tensor([target.key])
    for number in (0, 5):
        expected = run_trials(PackedImages.pack([image]), whole, key, trial, 1, first_trial=number).counts
        noisy = noisy_window(image, target, trial, number)
        clean = replace(trial, noise="none")
        found = run_trials(PackedImages.pack([noisy]), alone, key, clean, 1).counts
        assert torch.equal(found, expected)
        without = run_trials(PackedImages.pack([image]), whole, key, clean, 1).counts
        assert not torch.equal(without, expected)


def test_overlapping_windows_are_compared_with_their_neighbors(data, tmp_path):
    points = tmp_path / "points.csv"
    rows = [f"synthetic_0000{i},{x},{y},spot" for i in (1, 2) for x, y in ((30, 40), (36, 40), (36, 46))]
    points.write_text("\n".join(["image,x,y,category", *rows]) + "\n")
    run = LabelRun.open(label(data, tmp_path / "run", "--points", points), find_files(data / "images"))
    (process,) = trace_targets(run, [Target("synthetic_00002", 1)])
    assert process.changed == 0
    alone = process.stages[-1].tpm
    shared = read_tpm(tpm_path(run.folder, "synthetic_00002"))[process.window.area]
    assert (shared > alone + 0.01).any()  # the neighbors do reach into this window


def test_points_that_were_skipped_are_not_counted(data, tmp_path):
    source = tmp_path / "data"
    shutil.copytree(data, source)
    path = source / "images" / "synthetic_00000.png"
    image = np.array(Image.open(path))
    image[:20, :20] = 7  # a click here has a constant window
    Image.fromarray(image).save(path)
    points = tmp_path / "points.csv"
    points.write_text("image,x,y\nsynthetic_00000,5,5\nsynthetic_00000,40,50\nsynthetic_00001,9,9\n")
    run, processes = processes_of(source, label(source, tmp_path / "run", "--points", points))
    assert list(run.targets()) == [Target("synthetic_00000", 0), Target("synthetic_00001", 0)]
    assert (processes[0].point.x, processes[0].point.y) == (40, 50)
    assert processes[0].changed == 0


def test_another_image_is_told(data, labels, tmp_path, capsys):
    other = tmp_path / "data"
    shutil.copytree(data, other)
    target = next(LabelRun.open(labels).targets())
    path = other / "images" / f"{target.stem}.png"
    Image.fromarray(np.asarray(Image.open(path))[::-1]).save(path)
    capsys.readouterr()
    assert show(other, labels, tmp_path / "a.png", "--target", target) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{target}: ")
    assert str(mask_path(labels, target.stem)) in line
    assert show(data, labels, tmp_path / "b.png", "--target", target) == 0
    assert capsys.readouterr().err == ""
    Image.fromarray(np.asarray(Image.open(path))[:-1]).save(path)
    assert show(other, labels, tmp_path / "c.png", "--target", target) == 2
    assert "80x71" in capsys.readouterr().err
    Image.new("L", (80, 72), 9).save(path)
    assert show(other, labels, tmp_path / "c.png", "--target", target) == 2
    assert "constant" in capsys.readouterr().err


def test_targets_are_ranked_by_the_iou_in_their_window(data, labels):
    run = opened(data, labels)
    ranked = rank_targets(run, run.rows)
    assert sorted(target for _, target in ranked) == sorted(run.targets())
    assert [iou for iou, _ in ranked] == sorted(iou for iou, _ in ranked)
    assert ranked[0][0] < ranked[-1][0]
    for process in trace_targets(run, list(run.targets())):
        both, either = process.mask & process.truth, process.mask | process.truth
        assert (both.sum() / either.sum(), process.target) in ranked
    some = rank_targets(run, list(run.rows)[:2])
    assert {target.stem for _, target in some} == set(list(run.rows)[:2])
    stem = next(iter(run.rows))
    with pytest.raises(InputError, match="--truth"):
        rank_targets(LabelRun.open(labels), [stem])


def test_windows_without_any_pixel_are_not_ranked(data, tmp_path):
    labels = label(data, tmp_path / "run")
    run = opened(data, labels)
    stem = next(run.targets()).stem
    blank = tmp_path / "blank.png"
    Image.new("L", (80, 72)).save(blank)
    run.truths = {**run.truths, stem: blank}
    assert {iou for iou, target in rank_targets(run, run.rows) if target.stem == stem} == {0}
    shutil.copy(blank, mask_path(labels, stem))
    assert not [t for _, t in rank_targets(run, run.rows) if t.stem == stem]


def test_targets_are_found_by_name(data, labels):
    run = LabelRun.open(labels)
    stem = next(stem for stem, own in run.rows.items() if len(own) > 1)
    count = len(run.rows[stem])
    every = [Target(stem, i) for i in range(count)]
    assert find_targets(run, stem) == find_targets(run, f"{stem}.png") == every
    assert find_targets(run, f"{stem}:1") == find_targets(run, f"{stem}.png:1") == every[1:2]
    odd = LabelRun.open(labels)
    odd.rows = {"a:1": run.rows[stem], "none": []}
    assert find_targets(odd, "a:1") == [Target("a:1", i) for i in range(count)]
    assert find_targets(odd, "a:1:0") == [Target("a:1", 0)]
    for word, said in (
        (f"{stem}:{count}", f"has {count} targets"),
        (f"{stem}:-1", f"has {count} targets"),
        (f"{stem}:x", f"has {count} targets"),
        ("nobody", "no such image"),
        ("nobody:0", "no such image"),
    ):
        with pytest.raises(InputError, match=said):
            find_targets(run, word)
    with pytest.raises(InputError, match="has no target"):
        find_targets(odd, "none")


def test_the_image_tells_each_target(data, labels, monkeypatch):
    run, processes = processes_of(data, labels)
    pixels = np.asarray(trace_sheet(processes[:2], run.config))
    assert pixels.shape[0] - np.asarray(trace_sheet(processes[:1], run.config)).shape[0] == 180
    panels = pixels[66 : 66 + 150]

    def columns(color):
        return set((np.nonzero((panels == color).all(axis=2))[1] - 18) // 156)

    assert columns(CLICK) == {0}
    assert columns(MASK) >= {2, 7}
    assert columns(MASK) <= {2, 7, 1, 3, 4, 5, 6}
    assert 7 in columns(TRUTH)
    written = []
    monkeypatch.setattr(TEXT, lambda self, at, words, *rest, **options: written.append(words))
    trace_sheet([replace(processes[0], changed=3), processes[1]], run.config, "the title")
    first, second = (process.target for process in processes[:2])
    (changed,) = (words for words in written if words.startswith(f"{first}, "))
    (same,) = (words for words in written if words.startswith(f"{second}, "))
    assert changed.startswith(f"{first},  differs from the run's mask,  ")
    assert same.endswith(f"{processes[1].window.height} x {processes[1].window.width} px")
    headings = ["the title", "image and click", "trial 1: salt 0.05", "trial 1: segment"]
    headings += ["TPM after 1", "TPM after 2", "TPM after 20", "TPM after 25", "mask (CRF)", "truth"]
    assert set(headings) <= set(written)
    assert written.count("mask (CRF)") == 1
    written.clear()
    trace_sheet([replace(processes[0], truth=None)], replace(run.config, refine="threshold"))
    assert "truth" not in written
    assert "mask (TPM >= 0.7 max)" in written
    assert not any("IoU" in words for words in written)


def test_the_command_shows_worst_best_and_named_targets_once(data, labels, tmp_path, capsys):
    run = opened(data, labels)
    ranked = [target for _, target in rank_targets(run, run.rows)]
    capsys.readouterr()

    def shown(*more):
        assert show(data, labels, tmp_path / "out.png", *more) == 0
        *lines, last = capsys.readouterr().out.splitlines()
        assert last == f"{len(lines)} targets -> {tmp_path / 'out.png'}"
        height = Image.open(tmp_path / "out.png").height
        assert height == 107 + 180 * len(lines)
        return [line.split(": ")[0] for line in lines]

    truth = ["--truth", data / "masks"]
    assert shown(*truth, "--worst", 3) == [str(target) for target in ranked[:3]]
    assert shown(*truth, "--best", 2) == [str(target) for target in (ranked[-1], ranked[-2])]
    assert shown(*truth, "--worst", 1, "--target", ranked[0], ranked[1]) == [str(t) for t in ranked[:2]]
    assert len(shown(*truth, "--worst", 40)) == len(ranked)
    evenly = shown()
    assert len(evenly) == 6
    every = list(run.targets())
    assert (evenly[0], evenly[-1]) == (str(every[0]), str(every[-1]))
    names = tmp_path / "list.txt"
    names.write_text(f"{ranked[-1].stem}\n")
    own = [str(target) for target in run.targets() if target.stem == ranked[-1].stem]
    assert shown("--list", names) == own
    assert set(shown("--list", names, *truth, "--worst", 9)) == set(own)


def test_bad_input_ends_with_two_and_one_line(data, labels, tmp_path, capsys):
    small = tmp_path / "small"
    small.mkdir()
    for stem in find_files(data / "masks"):
        Image.new("L", (5, 5), 255).save(small / f"{stem}.png")
    names = tmp_path / "list.txt"
    names.write_text("nobody\n")
    few = tmp_path / "few" / "images"
    few.mkdir(parents=True)
    shutil.copy(data / "images" / "synthetic_00000.png", few / "stranger.png")
    truth = ["--truth", data / "masks"]
    out = tmp_path / "out.png"
    for words, said in (
        ([data, data, out], "no finished label run"),
        ([data, tmp_path / "nowhere", out], "no finished label run"),
        ([tmp_path / "few", labels, out], "no such image"),
        ([data, labels, out, "--target", "ghost"], "ghost"),
        ([data, labels, out, "--worst", "2"], "--worst ranks masks"),
        ([data, labels, out, "--best", "2"], "--best ranks masks"),
        ([data, labels, out, *truth, "--worst", "0"], "--worst 0"),
        ([data, labels, out, *truth, "--best", "-1"], "--best -1"),
        ([data, labels, out, "--truth", small], "5x5"),
        ([data, labels, out, "--truth", small, "--worst", "1"], "5x5"),
        ([data, labels, out, "--truth", tmp_path / "no"], str(tmp_path / "no")),
        ([data, labels, out, "--list", names], "none of its"),
        ([data, labels, out, *truth, "--worst", "1", "--list", names], "none of its"),
        ([data, labels, out, "--device", "tpu"], "tpu"),
        ([data, labels, tmp_path / "out.jpg"], "out.jpg"),
        ([data, labels, tmp_path / "out"], "ends in .png"),
        ([data, labels, labels / "masks" / "x.png"], "is an input, and --out would write there"),
        ([data, labels, labels / "overview.png"], "is an input, and --out would write there"),
        ([data, labels, data / "images" / "x.png"], "is an input, and --out would write there"),
        ([data, labels, data / "masks" / "x.png", *truth], "is an input, and --out would write there"),
    ):
        assert show(*words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("mclc-gpu: error: ")
        assert said in line
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda summary: "no json", "label again"),
        (lambda summary: [], "label again"),
        (lambda summary: {"settings": 3}, "label again"),
        (lambda summary: {"settings": {**summary["settings"], "seed": "x"}}, "label again"),
        (lambda summary: {"settings": {**summary["settings"], "later": 1}}, "another version"),
    ],
)
def test_other_accounts_are_refused(labels, tmp_path, change, said):
    run = tmp_path / "run"
    shutil.copytree(labels, run)
    summary = change(json.loads((run / "label.json").read_text()))
    (run / "label.json").write_text(summary if isinstance(summary, str) else json.dumps(summary))
    with pytest.raises(InputError, match=said) as caught:
        _ = LabelRun.open(run).config
    assert str(caught.value).startswith(str(run / "label.json"))


def test_many_targets_do_not_fit(data, tmp_path, capsys):
    points = tmp_path / "points.csv"
    rows = [f"synthetic_00000,{x},{y},point" for x in range(8, 72, 8) for y in range(8, 64, 8)]
    points.write_text("\n".join(["image,x,y,category", *rows]) + "\n")
    run = label(data, tmp_path / "run", "--points", points, "--trials", "1")
    capsys.readouterr()
    assert show(data, run, tmp_path / "out.png", "--target", "synthetic_00000") == 2
    assert "at most 48" in capsys.readouterr().err
    assert read_image(data / "images" / "synthetic_00000.png").shape == (72, 80)
