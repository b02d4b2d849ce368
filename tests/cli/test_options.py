"""Options, their help and their defaults, against the dataclasses that they are made from."""

import argparse
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

import pytest

from mclc_gpu.cli.commands import COMMANDS
from mclc_gpu.cli.main import main, parser
from mclc_gpu.cli.options import add_options, build, options_of
from mclc_gpu.errors import InputError
from mclc_gpu.labels.config import PRESETS, LabelConfig

# The least that each command has to be given.
LEAST = {
    "label": ["--images", "i", "--points", "p", "--out", "o"],
    "score": ["--pred", "p", "--truth", "t"],
    "train": ["--images", "i", "--points", "p", "--out", "o", "--network", "acm"],
    "evaluate": ["--checkpoint", "c", "--images", "i", "--masks", "m"],
    "predict": ["--checkpoint", "c", "--images", "i", "--out", "o"],
    "export": ["--checkpoint", "c"],
    "tune": ["--images", "i", "--masks", "m", "--out", "o"],
    "annotate": ["--images", "i", "--out", "o"],
    "show": ["--labels", "r", "--images", "i", "--out", "o.png"],
    "demo": [],
    "bench": [],
}
# Public options: to rename or remove one breaks the scripts of users.
LABEL_SETTINGS = {
    "jitter", "supervision", "clicks", "preset", "config", "trials", "category", "refine", "threshold",
    "crf-iterations", "crf-gaussian", "crf-bilateral", "method", "noise", "intensity", "clusters",
    "compactness", "polarity", "outline", "shards", "stop-change",
}  # fmt: skip
SCORING = {"json", "convention", "list", "roc", "strict"}
DETECTOR = {
    "checkpoint", "threshold", "tta", "tile", "overlap", "amp",
    "method", "parameter", "map-scale", "threshold-rule", "sigmas", "top",
}  # fmt: skip
RUN = {"out", "device", "resume", "overwrite", "strict", "list"}
PUBLIC = {
    "label": LABEL_SETTINGS | RUN | {"images", "points", "points-from-masks", "seed", "no-report"},
    "score": SCORING | {"pred", "truth", "threshold", "report", "labels", "images"},
    "train": LABEL_SETTINGS | RUN | {
        "images", "points", "points-from-masks", "masks", "val-images", "val-masks", "val-list", "network",
        "epochs", "batch-size", "size", "optimizer", "lr", "loss", "channels", "amp", "compile", "val-every",
        "seed", "schedule", "mpixels", "minutes", "hold-out", "init", "stages", "step-pixels", "rounds",
        "target-share", "margin", "hard-share", "average", "prior", "warmup", "weight-decay", "freeze",
        "scale-jitter", "gain-jitter", "paste-share", "backbone-weights",
    },
    "evaluate": SCORING | DETECTOR | {"images", "masks", "device", "out", "overwrite"},
    "predict": RUN | DETECTOR | {"images"},
    "export": {"checkpoint", "format", "out", "threshold", "overwrite"},
    "tune": RUN | {"images", "masks", "preset", "category", "jitter", "seeds", "budget", "seed"},
    "annotate": LABEL_SETTINGS - {"jitter", "clicks", "shards"} | {
        "images", "out", "points", "suggest", "seed", "host", "port", "open",
    },
    "show": {"labels", "images", "out", "truth", "target", "worst", "best", "list", "device"},
    "demo": {"out", "count", "epochs", "device", "seed"},
    "bench": {
        "suite", "images", "masks", "list", "out", "plan", "quick", "device",
        "table", "set", "split", "epochs", "mpixels", "only",
    },
}  # fmt: skip
# Settings that are reached through --config only, or that the options of a command replace.
WITHOUT_OPTION = {
    "label": {
        "config.maker", "config.trial.max_iterations", "config.trial.tolerance", "config.trial.shared_noise",
        "config.trial.connectivity", "config.trial.min_size_factor", "config.trial.max_size_factor",
        "config.crf.normalization", "config.crf.floor", "config.components.radius", "config.components.near",
        "config.components.levels", "config.components.max_area", "config.components.dark_margin",
        "config.components.core", "config.components.body", "config.components.category_weight",
        "config.components.weights.level", "config.components.weights.level_square",
        "config.components.weights.edge", "config.components.weights.rim",
        "config.components.weights.size", "config.components.weights.outline",
        "config.components.weights.distance", "config.components.weights.large",
        "config.components.opening",
    },
}  # fmt: skip
WITHOUT_OPTION["annotate"] = WITHOUT_OPTION["label"]
WITHOUT_OPTION["train"] = {f"labels.{name}" for name in WITHOUT_OPTION["label"]} | {"sets", "validation"}


def subparser(name: str) -> argparse.ArgumentParser:
    (commands,) = (action for action in parser()._actions if isinstance(action.choices, dict))
    return commands.choices[name]


def help_of(name: str) -> dict[str, str]:
    """Help text by option."""
    actions = subparser(name)._actions
    return {action.option_strings[-1].removeprefix("--"): action.help or "" for action in actions}


def parsed(name: str, *more: object) -> Any:
    argv = [name, *LEAST[name], *map(str, more)]
    return build(COMMANDS[name].options, parser().parse_args(argv))


def leaves(kind: type[Any], prefix: str = "") -> Iterator[str]:
    """Paths of the fields of a dataclass and of those in it."""
    for item in fields(kind):
        hint = get_type_hints(kind)[item.name]
        yield from leaves(hint, f"{prefix}{item.name}.") if is_dataclass(hint) else [prefix + item.name]


def value_at(instance: Any, path: str) -> Any:
    for name in path.split("."):
        instance = getattr(instance, name)
    return instance


@pytest.mark.parametrize("name", COMMANDS)
def test_public_options_are_those_of_the_command(name: str) -> None:
    assert help_of(name).keys() - {"help"} == PUBLIC[name]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_setting_has_an_option(name: str) -> None:
    paths = {setting.path for option in options_of(COMMANDS[name].options) for setting in option.settings}
    assert set(leaves(COMMANDS[name].options)) - paths == WITHOUT_OPTION.get(name, set())


@pytest.mark.parametrize("name", COMMANDS)
def test_parsed_defaults_are_those_of_the_dataclass(name: str) -> None:
    options, given = parsed(name), {word.removeprefix("--").replace("-", "_") for word in LEAST[name]}
    for item in fields(options):
        if item.metadata and item.name not in given | {"sources", "config"}:
            default = item.default_factory() if item.default_factory is not MISSING else item.default
            assert getattr(options, item.name) == default


@pytest.mark.parametrize("name", COMMANDS)
def test_help_states_the_default(name: str) -> None:
    texts, options = help_of(name), parsed(name)
    for option in options_of(COMMANDS[name].options):
        settings = [setting for setting in option.settings if setting.defaults]
        if option.required or not settings or settings[0].path.rpartition(".")[2] in ("preset", "file"):
            continue
        values = [value_at(options, setting.path) for setting in settings]
        if "kinds" in option.meta or values in ([None], [()]) or isinstance(values[0], bool):
            continue
        shown = " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
        text = texts[option.flag.removeprefix("--")]
        assert f"({shown})" in text or f"default preset: {shown}" in text


def test_help_of_label_settings_states_the_value_of_each_preset() -> None:
    texts = help_of("label")
    assert texts["refine"].endswith("(default preset: threshold; paper: crf)")
    for setting in ("refine", "threshold", "trials"):
        stated = dict.fromkeys(PRESETS, "")
        for part in texts[setting].rpartition("(")[2].rstrip(")").split("; "):
            presets, _, value = part.rpartition(": ")
            stated |= dict.fromkeys(presets.removesuffix(" preset").split(", "), value)
        for preset, config in PRESETS.items():
            # A preset that is not named has the value of the default one.
            assert (stated[preset] or stated["default"]) == f"{getattr(config, setting)}"


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_taken_as_they_are(preset: str) -> None:
    assert parsed("label", "--preset", preset).config == PRESETS[preset]
    assert parsed("train", "--preset", preset).labels.config == PRESETS[preset]


def test_options_change_single_settings_of_a_preset() -> None:
    options = ["--preset", "paper", "--trials", 7, "--noise", "gaussian", "--intensity", "0.1"]
    options += ["--crf-gaussian", 1, 2, "--crf-bilateral", 3, 4, 5, "--crf-iterations", 6]
    config = parsed("label", *options).config
    assert (config.maker, config.trials, config.trial.noise, config.trial.intensity) == (
        "mclc", 7, "gaussian", 0.1,
    )  # fmt: skip
    crf = config.crf
    assert (crf.gaussian_sxy, crf.gaussian_compat, crf.iterations) == (1, 2, 6)
    assert (crf.bilateral_sxy, crf.bilateral_srgb, crf.bilateral_compat) == (3, 4, 5)
    assert config.trial.clusters == LabelConfig().trial.clusters


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("label", ["--clusters", 5], "--clusters only applies"),
        ("label", ["--crf-gaussian", 1, 2], "--crf-gaussian only applies with --refine crf"),
        ("label", ["--preset", "paper", "--polarity", "dark"], "--polarity only applies"),
        ("label", ["--jitter", 1], "--jitter only applies with --points-from-masks"),
        ("train", ["--noise", "salt"], "--noise only applies"),
    ],
)
def test_options_without_effect_are_refused(name: str, more: list[object], message: str) -> None:
    with pytest.raises(InputError, match=f"{message}.*; remove it$"):
        parsed(name, *more)


def test_data_sets_of_train_are_paired_in_order() -> None:
    argv = ["train", "--images", "a", "--masks", "m", "--images", "b", "--points", "p", "--out", "o"]
    argv += ["--network", "acm", "--val-images", "v", "--val-masks", "w"]
    options = build(COMMANDS["train"].options, parser().parse_args(argv))
    assert [(one.images, one.masks, one.points) for one in options.sets] == [
        (Path("a"), Path("m"), None),
        (Path("b"), None, Path("p")),
    ]
    assert [(one.images, one.source) for one in options.validation] == [(Path("v"), Path("w"))]


@dataclass(frozen=True)
class Inner:
    rate: float = field(default=0.5, metadata={"help": "rate of it"})
    hidden: int = 3


@dataclass(frozen=True)
class Example:
    place: Path = field(metadata={"help": "a place"})
    kind: Literal["one", "two"] = field(default="one", metadata={"help": "a kind"})
    sizes: tuple[int, ...] = field(default=(1, 2), metadata={"help": "some sizes"})
    limit: float | None = field(default=None, metadata={"help": "a limit"})
    loud: bool = field(default=True, metadata={"option": "quiet", "help": "be quiet"})
    inner: Inner = field(default_factory=lambda: Inner(0.25, 7))

    def unused(self) -> dict[str, str]:
        return {"inner": "only applies to two"} if self.kind == "one" else {}


def example(*argv: str) -> Example:
    one = argparse.ArgumentParser()
    add_options(one, Example)
    return build(Example, one.parse_args(argv))


def test_types_of_fields_become_types_of_options() -> None:
    assert example("--place", "x") == Example(Path("x"))
    argv = ["--kind", "two", "--sizes", "3", "4", "5", "--limit", "2", "--quiet", "--rate", "0.1"]
    assert example("--place", "x", *argv) == Example(Path("x"), "two", (3, 4, 5), 2.0, False, Inner(0.1, 7))
    texts = {option.flag: option.help for option in options_of(Example)}
    assert texts["--rate"] == "rate of it (0.25)"
    assert texts["--sizes"] == "some sizes (1 2)"
    assert texts["--limit"] == "a limit"
    with pytest.raises(InputError, match="--rate only applies to two; remove it"):
        example("--place", "x", "--rate", "0.1")
    with pytest.raises(SystemExit):
        example("--place", "x", "--kind", "three")
    with pytest.raises(SystemExit):
        example()


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("train", ["--network", "unet"], "network 'unet': use one of acm, resunet"),
        ("bench", ["--suite", "slow"], "--suite slow: use one of label, slic"),
    ],
)
def test_names_of_registries_are_checked(name: str, more: list[object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parsed(name, *more)


def test_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["lable"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("mclc-gpu: error: argument COMMAND: invalid choice: 'lable'")
