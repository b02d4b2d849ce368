"""Errors in the input, and the report of inputs that were skipped."""

from dataclasses import dataclass
from pathlib import Path


class InputError(ValueError):
    """Input that cannot be used; the message is one line: which file or value, what is wrong, what to do.

    The command line turns it into exit code 2. Bulk commands catch it per item, report the item and go on.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """A message that quotes what files and users say, which may hold line breaks."""
    return " ".join(text.splitlines())


@dataclass(frozen=True, slots=True)
class Skipped:
    """One input that was left out while the rest went on.

    `file`: the file's name or path as the user knows it. `why`: one line, what is wrong with it.
    """

    file: str
    why: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "why", one_line(self.why))

    @staticmethod
    def because(file: Path | str, error: Exception) -> "Skipped":
        """The file an error is about; its name is not repeated in the reason."""
        return Skipped(str(file), str(error).removeprefix(f"{file}: "))
