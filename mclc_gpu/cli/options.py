"""Command-line options generated from the dataclasses that the commands take.

Each field with metadata becomes an option, and nested dataclasses are flattened, so that names, types,
choices, defaults and help are stated once. Types are bool, int, float, str, Path, `X | None`, a Literal, or
tuple[X, ...] for several values. Keys of the metadata:

- "help", "metavar", "const": as in argparse. "choices" too, which may be a registry; with a metavar the help
  lists them, and the dataclass checks them.
- "option": name of the option if not the field's; fields that share one make an option of several values.
- "repeat": the option is given once per value. "kinds": several such options, name -> (metavar, help), whose
  values are collected as (name, path) in the order of the command line.
- "either": name of a set of options of which at most one, or with "required" exactly one, is given.
- "title": heading in the help for a nested dataclass.
- "presets", "read": of a nested dataclass, its instances by name and a function that reads one from a file.
  They add the options --preset and --config, and the defaults depend on the preset.

A dataclass may have a method `unused` that returns its fields without effect, each with the condition under
which it would have one, such as "only applies with --refine crf". Options for such fields are refused.
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from mclc_gpu.errors import InputError


class Setting(NamedTuple):
    """A field that has an option: its path from the outermost dataclass, such as "config.trial.noise".

    `defaults` are by preset, the usual preset first, or under "" where there are no presets; a required
    setting has none.
    """

    path: str
    hint: Any
    defaults: dict[str, Any]
    meta: Mapping[str, Any]


@dataclass(frozen=True)
class Option:
    """An option and the settings that it gives values to."""

    flag: str
    settings: list[Setting]

    @property
    def meta(self) -> Mapping[str, Any]:
        """Metadata of the first setting."""
        return self.settings[0].meta

    @property
    def required(self) -> bool:
        """True if the option, or one of those that exclude it, has to be given."""
        return not self.settings[0].defaults or "required" in self.meta

    @property
    def help(self) -> str:
        """Help text with the default, or with those of the presets where they differ."""
        presets_of: dict[str, list[str]] = {}
        for preset in () if self.required else self.settings[0].defaults:
            values = [setting.defaults[preset] for setting in self.settings]
            if values == [None] or values == [()] or isinstance(values[0], bool):
                values = []
            presets_of.setdefault(" ".join(map(_shown, values)), []).append(preset)
        (usual, presets), *others = presets_of.items() or [("", [])]
        shown = [f"{presets[0]} preset: {usual}"] if others else [usual] * bool(usual)
        shown += [f"{', '.join(presets)}: {value}" for value, presets in others]
        text = self.meta.get("help", "")
        if {"choices", "metavar"} <= self.meta.keys():
            text += f": {', '.join(map(str, self.meta['choices']))}"
        return f"{text} ({'; '.join(shown)})".strip() if shown else text


def options_of(kind: type[Any]) -> list[Option]:
    """Return the options of a dataclass, required ones first.

    Examples
    --------
    >>> from dataclasses import dataclass, field
    >>> @dataclass
    ... class Motion:
    ...     speed: float = field(default=1.5, metadata={"help": "pixels per frame"})
    >>> [(option.flag, option.help) for option in options_of(Motion)]
    [('--speed', 'pixels per frame (1.5)')]
    """
    options: dict[str, Option] = {}
    for setting in _settings(kind):
        flag = _flag(setting.meta.get("option", setting.path.rpartition(".")[2]))
        options.setdefault(flag, Option(flag, [])).settings.append(setting)
    return sorted(options.values(), key=lambda option: not option.required)


def add_options(parser: argparse.ArgumentParser, kind: type[Any]) -> None:
    """Add the options of a dataclass to a parser, which leaves those not given out of its namespace."""
    places: dict[str, Any] = {}
    for option in options_of(kind):
        meta = option.meta
        place: Any = parser
        if title := meta.get("title"):
            place = places[title] = places.get(title) or parser.add_argument_group(title)
        if either := meta.get("either"):
            excluding = places.get(either) or place.add_mutually_exclusive_group(required=option.required)
            place = places[either] = excluding
        common: dict[str, Any] = {"dest": option.flag, "default": argparse.SUPPRESS}
        for name, (metavar, text) in meta.get("kinds", {}).items():
            of_kind = {"action": "append", "type": partial(_pair, name), "metavar": metavar, "help": text}
            place.add_argument(_flag(name), **common, **of_kind)
        if "kinds" not in meta:
            if option.required and not either:
                common["required"] = True
            place.add_argument(option.flag, **common, **_arguments(option), help=option.help)


def build(kind: type[Any], namespace: argparse.Namespace) -> Any:
    """Return the dataclass that the parsed options describe.

    Raises
    ------
    InputError
        A value out of range, an unusable file of settings, or an option without effect.
    """
    given: dict[str, Any] = {}
    flags: dict[str, str] = {}
    for option in options_of(kind):
        if option.flag in namespace:
            value = getattr(namespace, option.flag)
            values = value if len(option.settings) > 1 else [value]
            for setting, one in zip(option.settings, values, strict=True):
                given[setting.path] = tuple(one) if isinstance(one, list) else one
                flags[setting.path] = option.flag
    made = _build(kind, None, "", given)
    for path, condition in _unused(made):
        for setting_path, flag in flags.items():
            if f"{setting_path}.".startswith(f"{path}."):
                raise InputError(f"{flag} {condition}; remove it")
    return made


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _pair(name: str, path: str) -> tuple[str, Path]:
    return name, Path(path)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _default(item: "Field[Any]") -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default


def _settings(
    kind: type[Any], prefix: str = "", instances: Mapping[str, Any] | None = None, title: str = ""
) -> Iterator[Setting]:
    """Yield the settings of a dataclass whose defaults are those of `instances`, by preset, or its own."""
    hints = get_type_hints(kind)
    for item in fields(kind):
        path, meta, default = prefix + item.name, item.metadata, _default(item)
        if instances is not None:
            defaults = {preset: getattr(instance, item.name) for preset, instance in instances.items()}
        else:
            defaults = {} if default is MISSING else {"": default}
        heading = title or meta.get("title", "")
        if is_dataclass(hints[item.name]):
            if presets := dict(meta.get("presets", {})):
                (usual,) = (name for name, preset in presets.items() if preset == default)
                text = "settings that the options below change"
                of_preset = {"choices": presets, "help": text, "either": path, "title": heading}
                yield Setting(f"{path}.preset", str, {"": usual}, of_preset)
                text = "settings from a file instead: what tune wrote, or label.json of another run"
                of_file = {
                    "option": "config",
                    "metavar": "FILE",
                    "help": text,
                    "either": path,
                    "title": heading,
                }
                yield Setting(f"{path}.file", Path, {"": None}, of_file)
                defaults = {usual: default} | presets
            yield from _settings(hints[item.name], f"{path}.", defaults or None, heading)
        elif meta:
            yield Setting(path, hints[item.name], defaults, {**meta, "title": heading})


def _arguments(option: Option) -> dict[str, Any]:
    """Return type, number of values, choices and action of an option for argparse."""
    meta, default = option.meta, next(iter(option.settings[0].defaults.values()), None)
    hint = option.settings[0].hint
    if hint is bool:
        return {"action": "store_false" if default else "store_true"}
    arguments: dict[str, Any] = {}
    if get_origin(hint) is UnionType:
        (hint,) = (one for one in get_args(hint) if one is not NoneType)
    if get_origin(hint) is tuple:
        hint = get_args(hint)[0]
        arguments |= {"action": "append"} if "repeat" in meta else {"nargs": "+"}
    if get_origin(hint) is Literal:
        arguments["choices"] = get_args(hint)
        hint = type(get_args(hint)[0])
    if "metavar" in meta:
        arguments["metavar"] = meta["metavar"]
    elif "choices" in meta:
        arguments["choices"] = tuple(meta["choices"])
    if "const" in meta:
        arguments |= {"nargs": "?", "const": meta["const"]}
    if len(option.settings) > 1:
        metavars = tuple(setting.meta["metavar"] for setting in option.settings)
        arguments |= {"nargs": len(option.settings), "metavar": metavars}
    return {**arguments, "type": hint}


def _build(kind: type[Any], base: Any, prefix: str, given: Mapping[str, Any]) -> Any:
    """Return `base`, or a new instance where it is None, with the values given for its fields."""
    changes: dict[str, Any] = {}
    for item in fields(kind):
        path = prefix + item.name
        if path in given:
            changes[item.name] = given[path]
        elif any(name.startswith(f"{path}.") for name in given):
            inner = _default(item) if base is None else getattr(base, item.name)
            if f"{path}.preset" in given:
                inner = item.metadata["presets"][given[f"{path}.preset"]]
            if f"{path}.file" in given:
                inner = item.metadata["read"](given[f"{path}.file"])
            hint = get_type_hints(kind)[item.name]
            changes[item.name] = _build(hint, None if inner is MISSING else inner, f"{path}.", given)
    try:
        return kind(**changes) if base is None else replace(base, **changes)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(str(error)) from error


def _unused(instance: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path of each setting without effect, and the condition under which it would have one."""
    if hasattr(instance, "unused"):
        yield from ((prefix + name, condition) for name, condition in instance.unused().items())
    for item in fields(instance):
        if is_dataclass(inner := getattr(instance, item.name)):
            yield from _unused(inner, f"{prefix}{item.name}.")
