"""The search of label settings, and the tune command."""

import csv
import json
import shutil
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from mclc_gpu.cli.main import main
from mclc_gpu.data.images import read_image, read_mask
from mclc_gpu.data.simulate import points_from_mask
from mclc_gpu.data.synthetic import hot_scene, write_dataset
from mclc_gpu.errors import InputError
from mclc_gpu.labels.config import MAKERS, Parameter, preset
from mclc_gpu.labels.pipeline import compose, label_images
from mclc_gpu.score.metrics import Scores
from mclc_gpu.tune.run import needed_errors
from mclc_gpu.tune.search import (
    STEP_PRICE,
    Evaluator,
    Search,
    TuneSet,
    cautious_gains,
    cross_validated,
    distance,
    gain_of,
    iou_by_seed,
    matters,
    space_of,
    values_of,
    with_values,
)

COUNT = 8
SPACE = (
    Parameter("a", tuple(range(9))),
    Parameter("kind", ("flat", "steep"), ordered=False),
    Parameter("b", tuple(range(9)), only=("kind", ("steep",))),
)


@pytest.fixture(scope="session")
def frames(tmp_path_factory):
    """Synthetic frames of bright targets with their true masks."""
    folder = tmp_path_factory.mktemp("frames")
    write_dataset(folder, COUNT, 5, size=(96, 96), test_share=0.0)
    return folder


@pytest.fixture(scope="session")
def dark(frames, tmp_path_factory):
    """The same frames as negatives."""
    folder = tmp_path_factory.mktemp("dark")
    shutil.copytree(frames / "masks", folder / "masks")
    (folder / "images").mkdir()
    for path in (frames / "images").iterdir():
        Image.fromarray(255 - read_image(path)).save(folder / "images" / path.name)
    return folder


def loaded(folder, seeds=1):
    images = [read_image(path) for path in sorted((folder / "images").iterdir())]
    truth = [read_mask(path) for path in sorted((folder / "masks").iterdir())]
    names = [path.stem for path in sorted((folder / "masks").iterdir())]
    return TuneSet(names, images, truth, [[points_from_mask(mask) for mask in truth]] * seeds)


def tune(folder, out, *argv):
    inputs = ["--images", folder / "images", "--masks", folder / "masks", "--device", "cpu"]
    return main([str(word) for word in ("tune", *inputs, "--out", out, *argv)])


def summary_of(out):
    return json.loads((out / "tune.json").read_text())


def hilly(values):
    """A hill at a = 6; on the steep kind a higher one at b = 2 that must be found by more than one step."""
    steep = 1 - 0.1 * abs(values["b"] - 2) if values["kind"] == "steep" else 0.75
    return steep - 0.05 * abs(values["a"] - 6)


def search(budget, seed=0, score=hilly):
    asked = []
    found = Search(
        lambda values: asked.append(values) or score(values),
        SPACE,
        {"a": 0, "kind": "flat", "b": 8},
        budget,
        seed,
    )
    found.run()
    return found, asked


def test_the_search_finds_the_top_behind_another_one():
    found, asked = search(400)
    assert found.best == {"a": 6, "kind": "steep", "b": 2}
    assert found.best_score == 1.0
    # The space is small: the search ends by itself, and asks nothing twice.
    assert len(asked) == found.seen <= 9 + 81
    assert len({tuple(values.values()) for values in asked}) == len(asked)


def test_a_budget_is_kept_and_the_start_stays_where_nothing_is_better():
    found, asked = search(7)
    assert (len(asked), found.best) == (7, {"a": 6, "kind": "flat", "b": 8})
    assert search(1)[0].best == asked[0] == {"a": 0, "kind": "flat", "b": 8}
    assert search(60, score=lambda values: 0.5)[0].best == asked[0]
    assert search(60, score=lambda values: 0.5 + 0.0004 * (values["a"] == 1))[0].best == asked[0]


def test_the_search_follows_its_seed():
    assert search(60, seed=3)[1] == search(60, seed=3)[1] != search(60, seed=4)[1]


def test_a_setting_without_effect_keeps_its_start():
    assert all(values["b"] == 8 for values in search(400)[1] if values["kind"] == "flat")


@pytest.mark.parametrize("name", ["paper", "default"])
def test_every_value_of_a_space_makes_a_config(name):
    base = preset(name)
    space = space_of(base)
    start = values_of(base, space)
    assert with_values(base, start) == base
    for parameter in space:
        assert start[parameter.name] in parameter.values
        assert len(set(parameter.values)) == len(parameter.values) > 1
        assert not parameter.ordered or list(parameter.values) == sorted(parameter.values)
        assert parameter.only is None or parameter.only[0] in start
        for value in parameter.values:
            assert values_of(with_values(base, {parameter.name: value}), space)[parameter.name] == value


def test_what_a_space_holds_follows_the_config():
    with pytest.raises(InputError, match="grabcut"):
        space_of(preset("grabcut"))
    own = space_of(preset("paper", threshold=0.55))
    (threshold,) = (parameter for parameter in own if parameter.name == "threshold")
    assert threshold.values == (0.3, 0.4, 0.5, 0.55, 0.6, 0.7, 0.8, 0.9)
    assert not matters(threshold, {"refine": "crf"})
    assert {p.name.split(".")[0] for p in MAKERS["mclc"].search_space} == {
        "trial",
        "refine",
        "threshold",
        "crf",
    }


@pytest.mark.parametrize("config", [preset("paper", trials=4), preset("default")], ids=["paper", "default"])
def test_evaluations_are_those_of_the_chain_and_the_scores(frames, config):
    whole = loaded(frames, seeds=2)
    evaluator = Evaluator(whole, torch.device("cpu"))
    counts = evaluator.counts(config)
    for seed, iou in enumerate(iou_by_seed(counts)):
        targets = label_images(
            whole.images, whole.points[seed], config, device="cpu", seed=seed, names=whole.names
        )
        scores = Scores()
        for at, mask in enumerate(whole.truth):
            scores.update(compose(mask.shape, [t for t in targets if t.image == at])[0], mask)
        assert iou == scores.compute().iou
    # Another refinement of the same TPMs.
    other = with_values(config, {"threshold": 0.2, "refine": "threshold"})
    assert (evaluator.counts(other) == Evaluator(whole, torch.device("cpu")).counts(other)).all()
    assert (evaluator.counts(other) != counts).any()


def test_values_of_a_part_of_a_part():
    config = preset("default", components={"near": 4})
    made = with_values(
        config, {"components.weights.edge": 1.0, "components.weights.rim": 2.0, "threshold": 0.4}
    )
    assert (made.components.weights.edge, made.components.weights.rim, made.threshold) == (1.0, 2.0, 0.4)
    assert made.components.near == 4
    assert made.components.weights.size == config.components.weights.size


def test_distances_are_counted_in_steps():
    start = {"a": 4, "kind": "flat", "b": 8}
    assert distance(start, start, SPACE) == 0
    assert distance({"a": 1, "kind": "steep", "b": 8}, start, SPACE) == 4


def drawn_table(images, gains, seed=0):
    """Counts of settings whose true gains in IoU are `gains`, each image with a deviation of its own."""
    rng = np.random.default_rng(seed)
    shares = 0.6 + np.asarray(gains)[:, None] + 0.1 * rng.standard_normal((len(gains), images))
    return np.stack([100 * shares, np.full_like(shares, 100)], axis=2)


def test_a_cautious_gain_grows_with_the_images_and_falls_with_the_distance():
    steps = np.array([0, 1, 5])
    few, many = (cautious_gains(drawn_table(n, [0, 0.1, 0.1]), steps) for n in (6, 600))
    assert few[0] == many[0] == 0
    assert few[1] < many[1] < 0.1
    assert many[1] - many[2] < 0.02
    alike = np.repeat(drawn_table(6, [0]), 3, axis=0)
    assert cautious_gains(alike, steps) == pytest.approx(-STEP_PRICE / 6 * steps)
    assert np.isfinite(cautious_gains(drawn_table(1, [0, 0.1, 0.1]), steps)).all()


def test_cross_validation_expects_nothing_of_chance_and_the_gain_of_what_holds():
    steps = np.arange(31)
    for gain in (0.0, 0.2):
        gains = []
        for seed in range(8):
            table = drawn_table(10, [0, gain, *[0] * 29], seed)
            held = cross_validated(table[:, None], steps, seed)
            gains.append(gain_of(table[:1], held, 0)[0])
        assert np.mean(gains) == pytest.approx(gain, abs=0.05)


def test_a_gain_and_its_uncertainty():
    before = np.array([[[50, 100], [10, 20]] * 8])
    alike = np.array([[[60, 100], [12, 20]] * 8])
    assert gain_of(before, before, 0) == (0, 0)
    gain, uncertainty = gain_of(before, alike, 0)
    assert gain == pytest.approx(0.1)
    assert uncertainty < 1e-6
    mixed = before + np.array([[[20, 0], [0, 0], [-16, 0], [0, 0]] * 4])
    gain, uncertainty = gain_of(before, mixed, 0)
    assert 0 < gain < uncertainty


def test_few_images_need_more_standard_errors():
    few, many = needed_errors(10), needed_errors(1000)
    assert (round(few, 2), round(many, 2)) == (2.82, 2.33)
    assert np.isfinite(needed_errors(1))


def test_dark_targets_are_found_and_label_takes_the_config(dark, tmp_path, capsys):
    out, labels = tmp_path / "tuned", tmp_path / "labels"
    assert tune(dark, out, "--budget", 8, "--category", "given") == 0
    found = summary_of(out)
    assert found["changes"]["components.polarity"][0] == "bright"
    assert found["settings"]["seeds"] == 1
    assert found["tuned_kept"]
    assert found["before"]["iou"] < 0.3 < 0.5 < found["cross_validated"]["iou"]
    text = capsys.readouterr().out
    assert f"tuned {found['after']['iou']:.4f}" in text
    assert f"label --config {out / 'config.json'}" in text
    data = ["--images", dark / "images", "--points-from-masks", dark / "masks", "--device", "cpu"]
    argv = ["label", *data, "--config", out / "config.json", "--out", labels]
    assert main([str(word) for word in argv]) == 0
    score = ["score", "--pred", labels / "masks", "--truth", dark / "masks", "--json", tmp_path / "s.json"]
    assert main([str(word) for word in score]) == 0
    assert json.loads((tmp_path / "s.json").read_text())["iou"] == found["after"]["iou"]
    # An option still changes a single setting, and a run's own summary is a config too.
    again = ["label", *data, "--config", labels / "label.json", "--threshold", 0.9, "--out", tmp_path / "b"]
    assert main([str(word) for word in again]) == 0
    settings = [json.loads((o / "label.json").read_text())["settings"] for o in (labels, tmp_path / "b")]
    assert settings[1] == {**settings[0], "threshold": 0.9}


def test_masks_of_dim_bodies_point_to_their_outline(tmp_path, capsys):
    for index in range(6):
        made = hot_scene(0, index)
        for folder, pixels in (("images", made.image), ("masks", made.mask.astype(np.uint8) * 255)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f"{index}.png")
    assert tune(tmp_path, tmp_path / "out", "--budget", 6) == 0
    found = summary_of(tmp_path / "out")
    assert found["outline"] == max(found["outlines"], key=found["outlines"].get) == "body"
    assert found["gain"] > 0.3
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == asdict(preset("default", components={"outline": "body"}))
    assert "these masks point to --outline body" in capsys.readouterr().out


def test_the_files_tell_every_evaluation(frames, tmp_path):
    assert tune(frames, tmp_path, "--budget", 4, "--preset", "paper", "--seeds", 2, "--jitter", 1) == 0
    with (tmp_path / "search.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["evaluation"]) for row in rows] == [1, 2, 3, 4]
    assert all(0 <= float(row["iou"]) <= 1 and float(row["spread"]) >= 0 for row in rows)
    assert {(row["trial.clusters"], row["trial.compactness"]) for row in rows} > {("9", "20.0")}
    assert Image.open(tmp_path / "search.png").size[0] > 1000
    found = summary_of(tmp_path)
    assert (found["images"], found["outlines"]) == (COUNT, {})
    assert (
        found["settings"]["config"]["trials"] == json.loads((tmp_path / "config.json").read_text())["trials"]
    )


def test_a_gain_that_does_not_carry_over_is_not_taken(frames, tmp_path, monkeypatch, capsys):
    # Half of the masks are drawn much wider than the others, so that what suits one half harms the other.
    whole = loaded(frames)
    shutil.copytree(frames / "images", tmp_path / "images")
    (tmp_path / "masks").mkdir()
    for at, (name, mask) in enumerate(zip(whole.names, whole.truth, strict=True)):
        drawn = ndimage.binary_dilation(mask, iterations=2) if at % 2 else mask
        Image.fromarray(drawn.astype(np.uint8) * 255).save(tmp_path / "masks" / f"{name}.png")
    assert tune(tmp_path, tmp_path / "out", "--budget", 12) == 0
    found = summary_of(tmp_path / "out")
    assert found["gain"] <= found["gain_needed"]
    assert not found["tuned_kept"]
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == asdict(preset("default"))
    assert "keeps the values of preset default" in capsys.readouterr().out


def test_one_image_works_with_a_warning(dark, tmp_path, capsys):
    (tmp_path / "one.txt").write_text(sorted((dark / "images").iterdir())[0].stem)
    assert tune(dark, tmp_path / "out", "--budget", 3, "--list", tmp_path / "one.txt") == 0
    found = summary_of(tmp_path / "out")
    assert (found["images"], found["cross_validated"], found["tuned_kept"]) == (1, None, False)
    out, err = capsys.readouterr()
    assert "warning: 1 image with targets" in err
    assert "not cross-validated" in out


def test_an_interrupt_leaves_what_was_found_and_resume_ends_the_same(dark, tmp_path, monkeypatch, capsys):
    assert tune(dark, tmp_path / "whole", "--budget", 5) == 0
    done = []
    real = Evaluator._of_seed

    def stopping(self, config, seed):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(config)
        return real(self, config, seed)

    monkeypatch.setattr(Evaluator, "_of_seed", stopping)
    out = tmp_path / "out"
    assert tune(dark, out, "--budget", 5) == 130
    assert "tune goes on with --resume" in capsys.readouterr().err
    assert not (out / "tune.json").exists()
    assert json.loads((out / "config.json").read_text())["components"]["polarity"] != "bright"
    assert tune(dark, out, "--budget", 5) == 2
    before, done = done, []
    monkeypatch.setattr(Evaluator, "_of_seed", lambda *given: done.append(given[1]) or real(*given))
    assert tune(dark, out, "--budget", 5, "--resume") == 0
    assert len(done) == 1
    assert done[0] not in before
    for name in ("config.json", "search.csv"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    done.clear()
    assert tune(dark, out, "--budget", 5, "--resume") == 0
    assert done == []


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--seeds", 0], "seeds 0"),
        (["--budget", 0], "budget 0"),
        (["--jitter", -1], "jitter -1"),
        (["--preset", "lca"], "--preset"),
        (["--list", "none.txt"], "none.txt"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_bad_options_are_reported_in_one_line(frames, tmp_path, capsys, argv, says):
    try:
        code = tune(frames, tmp_path / "out", *argv)
    except SystemExit as error:
        code = error.code
    err = capsys.readouterr().err
    assert (code, err.count("\n")) == (2, 1)
    assert says in err
    assert not (tmp_path / "out").exists()


def test_masks_without_targets_are_reported(frames, tmp_path, capsys):
    for path in (frames / "masks").iterdir():
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.new("L", (96, 96)).save(tmp_path / "masks" / path.name)
    shutil.copytree(frames / "images", tmp_path / "images")
    assert tune(tmp_path, tmp_path / "out") == 2
    assert "nothing to tune on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        ("{", "no JSON"),
        ("[1]", "no JSON object; give the config.json of tune"),
        ('{"settings": 3}', "holds no label settings"),
        ('{"maker": "mclc"}', "another version"),
        (json.dumps({**asdict(preset("paper")), "threshold": 2}), "threshold 2"),
    ],
)
def test_a_bad_config_is_reported_in_one_line(frames, tmp_path, capsys, content, says):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    data = ["--images", frames / "images", "--points-from-masks", frames / "masks", "--out", tmp_path / "out"]
    assert main([str(word) for word in ("label", *data, "--config", path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert str(path) in err
    assert says in err


def test_a_config_excludes_a_preset(frames, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["label", "--images", "a", "--points", "b", "--out", "c", "--preset", "paper", "--config", "d"])
    assert stop.value.code == 2
    assert "not allowed with" in capsys.readouterr().err
