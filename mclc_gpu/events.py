"""Curves as TensorBoard reads them."""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


class Events:
    """A file of TensorBoard events in a folder, which is made.

    Written at once and by this thread: TensorBoard's own writer has one that tells nobody of a full disk.
    """

    def __init__(self, folder: Path, behind: int) -> None:
        """What earlier files say of steps after the `behind` first ones is taken back."""
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns():020d}.{socket.gethostname()}.{os.getpid()}"
        self.path = folder / name
        self.file = self.path.open("wb", buffering=0)
        self.records = RecordWriter(self.file)
        self._write(file_version="brain.Event:2")
        self._write(step=behind + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add points of curves, by their names. Raises OSError that names the file."""
        points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step=step, summary=Summary(value=points))

    def _write(self, **content: Any) -> None:
        event = Event(wall_time=time.time(), **content)
        try:
            self.records.write(event.SerializeToString())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def close(self) -> None:
        """Close the file."""
        self.file.close()
