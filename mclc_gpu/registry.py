"""Registries of the kinds of thing that can be added: label makers, detectors, noises, formats, metrics."""

from collections.abc import Iterator, Mapping, MutableMapping
from importlib import import_module
from typing import Any, Generic, TypeVar, cast

from mclc_gpu.errors import InputError

Thing = TypeVar("Thing")


def resolve(path: str) -> Any:
    """Import what a dotted path ``"package.module.NAME"`` names."""
    module, _, attribute = path.rpartition(".")
    return getattr(import_module(module), attribute)


class Registry(MutableMapping[str, Thing], Generic[Thing]):
    """Things of one kind by name, in order of registration.

    An entry is the thing itself or the dotted path of where it lives, ``"package.module.NAME"``. A path is
    imported when the thing is first asked for, so that listing names stays quick.

    Parameters
    ----------
    kind : str
        What the things are, for error messages, such as "network".
    entries : Mapping[str, Thing | str]

    Examples
    --------
    >>> from mclc_gpu.registry import Registry
    >>> roots = Registry("root", {"square": "math.sqrt"})
    >>> list(roots), roots["square"](9.0)
    (['square'], 3.0)
    >>> roots["identity"] = lambda value: value
    >>> roots.find("cubic")
    Traceback (most recent call last):
    mclc_gpu.errors.InputError: root 'cubic': use one of square, identity
    """

    def __init__(self, kind: str, entries: Mapping[str, Thing | str]) -> None:
        self.kind = kind
        self._entries: dict[str, Thing | str] = dict(entries)

    def find(self, name: str) -> Thing:
        """Return the thing of a name. Raises InputError, which lists the names, where there is none."""
        if name not in self._entries:
            raise InputError(f"{self.kind} {name!r}: use one of {', '.join(self)}")
        return self[name]

    def __getitem__(self, name: str) -> Thing:
        entry = self._entries[name]
        if isinstance(entry, str):
            entry = self._entries[name] = cast(Thing, resolve(entry))
        return entry

    def __setitem__(self, name: str, thing: Thing | str) -> None:
        self._entries[name] = thing

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
