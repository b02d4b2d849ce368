"""The one error type for bad input."""


class InputError(ValueError):
    """Input that cannot be used; the message is one line: which file or value, what is wrong, what to do.

    The command line turns it into exit code 2. Bulk commands catch it per item, report the item and go on.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """A message that quotes what files and users say, which may hold line breaks."""
    return " ".join(text.splitlines())
