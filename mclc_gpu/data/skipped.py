"""What a bulk command left out, and why."""

from dataclasses import dataclass
from pathlib import Path

from mclc_gpu.errors import one_line


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
