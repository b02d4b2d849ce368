"""Choice of backend and device: the only module that queries the hardware."""

import os

import torch

from mclc_gpu.errors import InputError

BACKENDS = ("triton", "cpu")


def interpreted() -> bool:
    """Check if Triton kernels run in Triton's interpreter (environment variable ``TRITON_INTERPRET=1``)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def resolve(backend: str | None, *tensors: torch.Tensor) -> str:
    """Return the backend that runs an operation on some tensors.

    A requested backend is used or refused, never replaced.

    Parameters
    ----------
    backend : {"triton", "cpu"} or None
        None selects Triton for CUDA tensors and the compiled CPU backend otherwise. ``"triton"`` on CPU
        tensors needs Triton's interpreter.
    *tensors : Tensor
        All tensors of the operation.

    Returns
    -------
    str
        ``"triton"`` or ``"cpu"``.

    Raises
    ------
    ValueError
        Unknown backend, or tensors on more than one device.
    RuntimeError
        The requested backend cannot run on the tensors' device.

    Examples
    --------
    >>> resolve(None, torch.zeros(1))
    'cpu'
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
    """Return the device of a name.

    Parameters
    ----------
    name : str
        ``auto`` (CUDA if there is any, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises
    ------
    InputError
        Unknown name, or CUDA requested on a machine without it.

    Examples
    --------
    >>> pick_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise InputError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name}: this machine has {torch.cuda.device_count()} CUDA devices; use cpu")
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """Return the name of a CUDA device; ``cpu (N threads)`` for the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({os.cpu_count()} threads)"


def synchronize(device: torch.device) -> None:
    """Wait until all work queued on a device is done, so that the clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def processors(device: torch.device) -> int:
    """Return the number of streaming multiprocessors; 1 for the CPU, where the interpreter is sequential."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def free_memory(device: torch.device) -> int:
    """Return the free memory of a device in bytes.

    For the CPU it is what the system reports as available, or 4 GiB if it reports nothing.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) << 10
    except OSError:
        return 4 << 30
