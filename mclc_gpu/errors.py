"""The error of unusable input, and the report of inputs that were skipped."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Content = TypeVar("Content")


class InputError(ValueError):
    """Input that cannot be used; the message is one line: which file or value, what is wrong, what to do.

    The command line turns it into exit code 2. Commands on many files catch it per file (see `attempt`),
    report the file and continue.

    Parameters
    ----------
    message : str
        Line breaks in it, which quoted file contents may hold, become blanks.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """Join the lines of a text by blanks."""
    return " ".join(text.splitlines())


@dataclass(frozen=True, slots=True)
class Skipped:
    """One input that was left out while the command continued with the others.

    Attributes
    ----------
    file : str
        Name or path of the file as the user gave it.
    why : str
        Reason, one line.
    """

    file: str
    why: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "why", one_line(self.why))

    @staticmethod
    def because(file: Path | str, error: Exception) -> "Skipped":
        """Return the report of an error about a file; the reason does not repeat the file's name."""
        return Skipped(str(file), str(error).removeprefix(f"{file}: "))


def attempt(file: Path | str, read: Callable[[], Content]) -> Content | Skipped:
    """Read a file, or report why it cannot be used.

    Parameters
    ----------
    file : Path or str
        File to report.
    read : callable
        Called once without arguments.

    Returns
    -------
    object or Skipped
        Result of `read`, or the report of the InputError that it raised. Other errors are not caught.

    Examples
    --------
    >>> from mclc_gpu.errors import InputError, attempt
    >>> def read():
    ...     raise InputError("a.png: the file is empty; copy it again")
    >>> attempt("a.png", read)
    Skipped(file='a.png', why='the file is empty; copy it again')
    """
    try:
        return read()
    except InputError as error:
        return Skipped.because(file, error)
