"""Devices on which the tests run the two backends of the kernels."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from triton.runtime.interpreter import InterpretedFunction

from mclc_gpu.bench.recorder import DEVICE, OnDevice, Record, marked_device
from mclc_gpu.kernels import backend as backend_module
from mclc_gpu.kernels.backend import pick_device

BACKENDS = ("cpu", "triton")
Tensors = TypeVar("Tensors")


def device_of(backend: str | None) -> torch.device:
    """Return the device of a backend's tensors: for "triton" the GPU, or `interpreted_gpu`."""
    return pick_device("auto" if backend == "triton" else "cpu")


def on_cpu(result: Tensors) -> Tensors:
    """Return a dataclass with its tensors moved to the CPU, where the references are."""
    values = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    tensors = {name: value.cpu() for name, value in values.items() if isinstance(value, torch.Tensor)}
    return dataclasses.replace(result, **tensors)


@contextmanager
def interpreted_gpu() -> Iterator[torch.device]:
    """Let Triton's interpreter stand for a GPU, and refuse what a GPU refuses.

    Its tensors are marked, and lie in the memory of the process. An operation that mixes them with tensors of
    the CPU fails, so does ``backend="triton"`` for tensors of the CPU, and a launch while another device is
    the current one, as it is outside `launching`, or with a grid whose size is limited.
    """
    current: list[torch.device] = [torch.device("cuda", DEVICE.index + 1)]

    @contextmanager
    def make_current(device: torch.device) -> Iterator[None]:
        current.append(torch.device(device))
        try:
            yield
        finally:
            current.pop()

    run: Callable[..., Any] = InterpretedFunction.run

    def launch(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        name = kernel.__name__
        assert current[-1].index in (None, DEVICE.index), f"{name}: {current[-1]} is current"
        assert len(grid) == 1, f"{name}: only the first dimension of a grid can have more than 65535 programs"
        tensors = [value for value in (*arguments, *options.values()) if isinstance(value, torch.Tensor)]
        assert all(isinstance(tensor, OnDevice) for tensor in tensors), f"{name}: tensors of the CPU"
        with torch._C.DisableTorchFunction():
            plain = [v.as_subclass(torch.Tensor) if isinstance(v, torch.Tensor) else v for v in arguments]
            return run(kernel, *plain, grid=grid, warmup=warmup, **options)

    with (
        marked_device(Record()),
        patch.object(torch.cuda, "device", make_current),
        patch.object(InterpretedFunction, "run", launch),
        patch.object(backend_module, "interpreted", lambda: False),
    ):
        yield DEVICE
