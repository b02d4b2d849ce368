"""Choice of backend and device, and copies to and from devices: the only module that queries the hardware."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch

from mclc_gpu.errors import InputError

BACKENDS = ("triton", "cpu")
_ALIGNMENT = 16  # bytes; Triton compiles kernels anew for pointers that are aligned otherwise


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
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu ({torch.get_num_threads()} threads)"
    )


def synchronize(device: torch.device) -> None:
    """Wait until all work queued on a device is done, so that the clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Moment:
    """Moment in the work that is queued on a device; on the CPU the time of the clock.

    Parameters
    ----------
    device : torch.device
        The moment is reached when all work that was queued on its current stream is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._time = time.perf_counter()
        self._event = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record(torch.cuda.current_stream(device))

    def since(self, other: "Moment") -> float:
        """Return the seconds from an earlier moment of the same device to this one; waits for this one."""
        if self._event is None or other._event is None:
            return self._time - other._time
        if not self._event.query():
            self._event.synchronize()
        return float(other._event.elapsed_time(self._event)) / 1e3


def streams(device: torch.device, number: int) -> list[Callable[[], AbstractContextManager[object]]]:
    """Return context managers that make further streams of a device the current one; no-ops elsewhere."""
    if device.type != "cuda":
        return [nullcontext] * number
    return [partial(torch.cuda.stream, torch.cuda.Stream(device)) for _ in range(number)]


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


def launching(device: torch.device) -> AbstractContextManager[object]:
    """Make a CUDA device the current one, as Triton needs it around launches; does nothing for others."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def upload(device: torch.device, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """Put tensors on a device by a single copy, without waiting for it.

    Parameters
    ----------
    device : device
        Where they are needed.
    *tensors : Tensor
        On the CPU, of any dtypes and shapes.

    Returns
    -------
    list of Tensor
        Contiguous, of the same values, dtypes and shapes, each at a multiple of 16 bytes in one buffer on the
        device. For the CPU the given tensors themselves.

    Examples
    --------
    >>> upload(torch.device("cpu"), torch.tensor([1.5, 2.0]))
    [tensor([1.5000, 2.0000])]
    """
    if device.type == "cpu":
        return list(tensors)
    places = _places(tensors)
    staging = torch.empty(places[-1][1], dtype=torch.uint8, pin_memory=device.type == "cuda")
    for part, tensor in zip(_parts(staging, tensors, places), tensors, strict=True):
        part.copy_(tensor)
    return _parts(copy_to_device(staging, device), tensors, places)


def download(*tensors: torch.Tensor) -> Callable[[], list[torch.Tensor]]:
    """Begin to fetch tensors of one device by a single copy.

    Parameters
    ----------
    *tensors : Tensor
        Of any dtypes and shapes. What was queued before on the device's current stream is in the copy.

    Returns
    -------
    function
        Waits for the copy, and for nothing that is queued later, and returns the tensors on the CPU; those
        that are there already are returned themselves.

    Examples
    --------
    >>> fetched = download(torch.tensor([1.5, 2.0]), torch.tensor(3))
    >>> fetched()
    [tensor([1.5000, 2.0000]), tensor(3)]
    """
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return lambda: list(tensors)
    places = _places(tensors)
    packed = torch.empty(places[-1][1], dtype=torch.uint8, device=tensors[0].device)
    for part, tensor in zip(_parts(packed, tensors, places), tensors, strict=True):
        part.copy_(tensor)
    arrived = copy_to_host(packed)
    return lambda: _parts(arrived(), tensors, places)


def copy_to_device(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Queue one copy to a device. Page-locked memory is not reused before the copy is done."""
    return host.to(device, non_blocking=True)


def copy_to_host(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Queue one copy to page-locked memory; the function returned waits for it and returns the copy."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    host.copy_(tensor, non_blocking=True)
    if not tensor.is_cuda:
        return lambda: host
    done = torch.cuda.current_stream(tensor.device).record_event()

    def arrived() -> torch.Tensor:
        done.synchronize()
        return host

    return arrived


def _places(tensors: Sequence[torch.Tensor]) -> list[tuple[int, int]]:
    """Return the first byte of each tensor in a buffer that holds all of them, and the first behind it.

    A last place begins and ends at the end of the buffer.
    """
    places, end = [], 0
    for tensor in tensors:
        size = tensor.nbytes
        places.append((end, end + size))
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return [*places, (end, end)]


def _parts(
    buffer: torch.Tensor, tensors: Sequence[torch.Tensor], places: Sequence[tuple[int, int]]
) -> list[torch.Tensor]:
    """Return the parts of a buffer that belong to tensors, in their dtypes and shapes."""
    parts = []
    for (first, end), like in zip(places, tensors, strict=False):
        part = buffer[first:end].view(like.dtype)
        parts.append(part if like.ndim == 1 else part.view(like.shape))
    return parts
