"""Which backend runs an operation. The only file that asks what hardware there is."""

import os

import torch

BACKENDS = ("triton", "cpu")


def interpreted() -> bool:
    """Whether Triton kernels run in Triton's interpreter (environment variable ``TRITON_INTERPRET=1``)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def resolve(backend: str | None, *tensors: torch.Tensor) -> str:
    """Name of the backend that runs an operation on these tensors: ``"triton"`` or ``"cpu"``.

    ``None`` means Triton for CUDA tensors and the compiled CPU backend otherwise. An explicit request is
    obeyed or refused, never replaced: ``"triton"`` on CPU tensors needs Triton's interpreter.

    Raises
    ------
    ValueError
        Unknown backend, or tensors on more than one device.
    RuntimeError
        The backend asked for cannot run on the tensors' device.
    """
    devices = {tensor.device for tensor in tensors}
    if len(devices) != 1:
        raise ValueError(f"all tensors must be on one device, got {sorted(map(str, devices))}")
    kind = devices.pop().type
    if backend is None:
        return "triton" if kind == "cuda" else "cpu"
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS} or None, got {backend!r}")
    if backend == "cpu" and kind != "cpu":
        raise RuntimeError(f"backend 'cpu' needs tensors on the CPU, got {kind}: move them with .cpu()")
    if backend == "triton" and kind != "cuda" and not interpreted():
        raise RuntimeError(
            "backend 'triton' needs CUDA tensors (or TRITON_INTERPRET=1 to interpret on the CPU)"
        )
    return backend


def pick_device(name: str) -> torch.device:
    """The device behind ``auto``, ``cpu`` or ``cuda[:N]``.

    Raises
    ------
    ValueError
        Unknown name, or CUDA asked for where there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {name}: this machine shows {torch.cuda.device_count()} CUDA devices; use cpu"
        )
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """Name of a CUDA device; "cpu (N threads)" for the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({os.cpu_count()} threads)"


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was asked for, so that the clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def processors(device: torch.device) -> int:
    """Streaming multiprocessors of a CUDA device; 1 elsewhere (the interpreter is sequential)."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def free_memory(device: torch.device) -> int:
    """Bytes of memory that a device has free; for the CPU, this machine (4 GiB where it does not say)."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) << 10
    except OSError:
        return 4 << 30
