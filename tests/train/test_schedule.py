"""Steps of the fast schedule: stages, learning rates, rounds and budgets."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mclc_gpu.errors import InputError
from mclc_gpu.train.config import DataSet, FastConfig, TrainConfig, TrainOptions
from mclc_gpu.train.schedule import Budget, FastSchedule, Schedule, Stretch, make_schedule


def schedule(
    config: TrainConfig, begun: Budget | None = None, images: int = 10, world: int = 1
) -> FastSchedule:
    made = make_schedule(config.resolved(), images, 2, world, begun)
    assert isinstance(made, FastSchedule)
    return made


def settings(mpixels: float | None = 20, **fast: Any) -> TrainConfig:
    return TrainConfig("acm", mpixels=mpixels, fast=FastConfig(**fast))


def stretches(made: Schedule) -> list[Stretch]:
    return [stretch for number in range(made.rounds) for stretch in made.stretches(number)]


@pytest.mark.parametrize(
    "config",
    [
        settings(),
        settings(rounds=7, freeze=0.33),
        settings(stages="96:1", rounds=200),
        settings(mpixels=0.2, rounds=50),
        settings(stages="256:.1,16:.9", step_pixels=1),
    ],
)
def test_rounds_hold_every_stage_in_order_with_its_share_of_the_pixels(config: TrainConfig) -> None:
    made, stages = schedule(config), config.fast.parsed_stages()
    steps = stretches(made)
    largest = max(one.crops * one.side**2 for one in steps)
    assert all(made.stretches(number) for number in range(made.rounds))
    sides = [one.side for one in steps]
    assert [side for n, side in enumerate(sides) if not n or side != sides[n - 1]] == [
        stage.side for stage in stages
    ]
    for stage in stages:
        pixels = sum(one.pixels for one in steps if one.side == stage.side)
        assert pixels == pytest.approx(stage.share * made.pixels, abs=2 * largest)
    for number in range(made.rounds):
        pixels = sum(one.pixels for one in made.stretches(number))
        assert pixels == pytest.approx(made.pixels / made.rounds, abs=largest + 1)


def test_the_learning_rate_rises_then_falls_to_one_percent() -> None:
    config = settings(warmup=0.2)
    rates = np.array([rate for one in stretches(schedule(config)) for rate in one.rates])
    most = config.resolved().lr
    assert most is not None
    top = int(rates.argmax())
    assert (np.diff(rates[: top + 1]) > 0).all()
    assert (np.diff(rates[top:]) <= 0).all()
    assert rates.max() == pytest.approx(most, rel=0.01)
    assert 0 < rates[0] < 0.05 * most
    assert rates[-1] == pytest.approx(0.01 * most)
    level = [rate for one in stretches(schedule(settings(warmup=0))) for rate in one.rates]
    assert level[0] == max(level)


def test_pooled_norms_are_frozen_after_their_share() -> None:
    for share, expected in ((0.5, 0.5), (0.0, 0.0), (1.0, 1.0)):
        steps = stretches(schedule(settings(freeze=share)))
        thawed = sum(one.pixels for one in steps if not one.frozen)
        assert thawed == pytest.approx(expected * 20e6, abs=2e5)
        assert [one.frozen for one in steps] == sorted(one.frozen for one in steps)


def test_false_alarms_are_searched_at_the_quarters() -> None:
    made = schedule(settings(rounds=50))
    assert [number for number in range(50) if made.mines(number)] == [13, 25, 38]
    assert not any(schedule(settings(hard_share=0)).mines(number) for number in range(50))
    assert schedule(settings(rounds=1)).mines(0) is False


def test_processes_share_steps_of_the_same_pixels() -> None:
    one, four = (stretches(schedule(settings(), world=world)) for world in (1, 4))
    assert all(each.crops % 4 == 0 and each.crops >= 8 for each in four)
    assert sum(each.pixels for each in one) == pytest.approx(sum(each.pixels for each in four), rel=0.03)


def test_epochs_are_the_pixels_of_as_many_passes() -> None:
    config = replace(settings(mpixels=None), epochs=3, size=200)
    assert schedule(config, images=11).pixels == 3 * 11 * 200 * 200
    assert schedule(settings(mpixels=None)).pixels == 400e6


def test_a_larger_budget_goes_on_in_rounds_of_the_same_size() -> None:
    first = schedule(settings())
    begun = Budget(first.pixels, first.rounds)
    same = schedule(settings(), begun)
    assert (same.pixels, same.rounds) == begun
    longer = schedule(settings(mpixels=30), begun)
    assert (longer.pixels, longer.rounds) == (30_000_000, 75)
    before = sum(one.pixels for number in range(50) for one in longer.stretches(number))
    assert before == pytest.approx(first.pixels, abs=2e5)
    with pytest.raises(InputError, match="10 Mpixel is less than the 20"):
        schedule(settings(mpixels=10), begun)
    measured = replace(settings(mpixels=None), minutes=2)
    assert schedule(measured, begun).pixels == first.pixels


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": "64"}, "stages '64': give sides"),
        ({"stages": "8:1"}, "16 px or more"),
        ({"stages": "64:0"}, "shares above 0"),
        ({"stages": "64:nan"}, "shares above 0"),
        ({"target_share": 1.5}, "target_share 1.5: use 0 to 1"),
        ({"warmup": 1}, "warmup 1: use 0 to 0.9"),
        ({"rounds": 0}, "rounds 0: use 1 or more"),
        ({"average": float("nan")}, "average nan"),
    ],
)
def test_settings_of_the_fast_schedule_out_of_range(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FastConfig(**change)


def test_one_budget_is_given() -> None:
    with pytest.raises(InputError, match="one of epochs, mpixels and minutes"):
        TrainConfig(epochs=3, minutes=2)
    with pytest.raises(InputError, match="schedule paper: its budget is given as epochs"):
        TrainConfig(schedule="paper", mpixels=2)
    with pytest.raises(InputError, match="mpixels 0"):
        TrainConfig(mpixels=0)


def test_the_least_budget_is_one_step() -> None:
    made = schedule(settings(mpixels=1e-9))
    assert (made.pixels, made.rounds, sum(len(one.rates) for one in stretches(made))) == (1, 1, 1)


def test_settings_without_effect_are_told() -> None:
    assert TrainConfig().unused().keys() == {"batch_size", "size"}
    assert TrainConfig(epochs=3).unused().keys() == {"batch_size"}
    assert TrainConfig(schedule="paper").unused().keys() == {"fast"}
    images = DataSet(Path("images"), masks=Path("masks"))
    assert TrainOptions([images], Path("run")).unused().keys() == {"labels"}
    validated = TrainOptions([images], Path("run"), validation=[images])
    assert validated.unused().keys() == {"labels", "config.hold_out"}


def test_settings_that_are_recorded_are_those_that_are_used() -> None:
    fast, paper = TrainConfig().settings(), TrainConfig(schedule="paper").settings()
    assert (fast["mpixels"], fast["rounds"], fast["optimizer"]) == (400, 50, "muon")
    assert (paper["epochs"], paper["lr"], paper["batch_size"]) == (1500, 0.05, 16)
    assert not fast.keys() & {"batch_size"}
    assert not paper.keys() & {"mpixels", "minutes", "stages", "average"}
