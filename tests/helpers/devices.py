"""Devices on which the tests run the two backends of the kernels."""

import dataclasses
from typing import TypeVar

import torch

from mclc_gpu.kernels.backend import pick_device

BACKENDS = ("cpu", "triton")
Tensors = TypeVar("Tensors")


def device_of(backend: str | None) -> torch.device:
    """Return the device of a backend's tensors: for "triton" CUDA where there is one, else the CPU.

    On the CPU, Triton kernels run in Triton's interpreter, which `conftest.py` turns on.
    """
    return pick_device("auto" if backend == "triton" else "cpu")


def on_cpu(result: Tensors) -> Tensors:
    """Return a dataclass with its tensors moved to the CPU, where the references are."""
    values = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    tensors = {name: value.cpu() for name, value in values.items() if isinstance(value, torch.Tensor)}
    return dataclasses.replace(result, **tensors)
