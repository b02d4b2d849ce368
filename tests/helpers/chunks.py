"""Bounds of the chunks in which the command `label` works, as other values of its registered function."""

from dataclasses import replace
from functools import partial

from mclc_gpu.cli.commands import COMMANDS, Command
from mclc_gpu.labels.stream import Chunks


def label_in_chunks(**limits: object) -> Command:
    """Return the command `label` with other limits of its chunks, see `Chunks`, to put into COMMANDS."""
    from mclc_gpu.cli.label import label

    return replace(COMMANDS["label"], function=partial(label, chunks=Chunks(**limits)))
