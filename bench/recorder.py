"""A recorder in the place of a CUDA device: launches, copies and waits of the package, without a GPU."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import triton
from torch.overrides import TorchFunctionMode
from triton.backends.compiler import GPUTarget

from mclc_gpu.kernels.backend import interpreted

DEVICE = torch.device("cuda", 0)
PROCESSORS = 132  # of the device that is recorded, as of an H100
_CAPABILITY = 90
_MEMORY = 80 << 30
_CACHE = "recorder"  # key of its variants in Triton's caches

# What some kernels write, by their names and their arguments', so that what follows them has its usual work.
# Other outputs keep the zeros of their allocation.
_OUTPUTS: Mapping[str, Mapping[str, float]] = {
    "segment": {"p_counts": 7},
    "components": {"p_tpm": 0.6, "p_area": 9, "p_numbers": 1},
}


class OnDevice(torch.Tensor):
    """A tensor on the recorded device; its values are in the memory of this process."""

    __torch_function__: Any = torch._C._disabled_torch_function_impl
    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)


class PageLocked(torch.Tensor):
    """A tensor on the CPU in memory that counts as page-locked."""

    __torch_function__: Any = torch._C._disabled_torch_function_impl


@dataclass(frozen=True)
class Launch:
    """A launch of a Triton kernel: name of the kernel without "_kernel", grid, warps, key of the variant."""

    kernel: str
    grid: tuple[int, ...]
    warps: int
    variant: str


@dataclass
class Record:
    """Counts of the work that was asked of the device.

    Attributes
    ----------
    launches : list of Launch
        Of Triton kernels.
    operations : Counter of str
        PyTorch's operations on the device, by name; each is a launch of a kernel of PyTorch, or several.
    uploads, downloads : list of int
        Bytes of every copy to the device, and back.
    waits : Counter of str
        Occasions at which the host waited for the device, by what made it wait.
    compiled : list of (str, str)
        Kernel and key of every variant that Triton would have compiled, in order.
    calls : int
        Calls of PyTorch's functions from Python, each of which takes longer by the marking of tensors.
    """

    launches: list[Launch] = field(default_factory=list)
    operations: Counter[str] = field(default_factory=Counter)
    uploads: list[int] = field(default_factory=list)
    downloads: list[int] = field(default_factory=list)
    waits: Counter[str] = field(default_factory=Counter)
    compiled: list[tuple[str, str]] = field(default_factory=list)
    calls: int = 0

    def clear(self) -> None:
        """Forget what was recorded. Variants that were compiled stay so."""
        for part in (self.launches, self.operations, self.uploads, self.downloads, self.waits, self.compiled):
            part.clear()
        self.calls = 0


# Functions that ask about a tensor.
_QUESTIONS = frozenset(("__get__", "numel", "element_size", "data_ptr", "size", "dim", "__len__", "stride"))
# Functions that give another view of a tensor, or ask about it: no work of the device.
_VIEWS = frozenset(
    (
        *("view", "reshape", "expand", "expand_as", "permute", "t", "transpose", "unsqueeze", "squeeze"),
        *("as_strided", "detach", "split", "unbind", "unfold", "diagonal", "flatten", "ravel", "narrow"),
        *("select", "chunk", "view_as", "contiguous", "size", "stride", "dim", "numel", "element_size"),
        *("__len__", "data_ptr", "is_contiguous", "untyped_storage", "storage_offset", "__iter__"),
        *("record_stream", "empty", "empty_like", "new_empty", "is_floating_point", "movedim", "__get__"),
        *("__hash__", "__reversed__", "is_complex", "ndimension", "nelement", "get_device", "unflatten"),
    )
)
# Functions whose result the host needs before it can go on, with the bytes that it needs.
_WAITS = {
    **dict.fromkeys(("item", "__bool__", "__int__", "__float__", "__index__", "is_nonzero"), 8),
    **dict.fromkeys(("nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "equal"), 8),
    **dict.fromkeys(("allclose", "__contains__", "bincount"), 8),
}
# While counting, memory of the device holds zeros until something is written there.
_ZEROED: dict[Any, Any] = {torch.empty: torch.zeros, torch.empty_like: torch.zeros_like}
_TO_NUMPY = frozenset(("numpy", "__array__"))


class _Functions(TorchFunctionMode):
    """Every function of PyTorch that Python calls, in the place of the device."""

    def __init__(self, record: Record, counting: bool, zeroed: bool) -> None:
        super().__init__()
        self.record, self.counting, self.zeroed = record, counting, zeroed

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        self.record.calls += 1
        if name in _QUESTIONS:
            answer = func(*args, **(kwargs or {}))
            return _tagged(answer) if isinstance(args[0], OnDevice) else answer
        kwargs = dict(kwargs) if kwargs else {}
        first: Any = args[0] if args else None
        if name in ("to", "cpu", "cuda"):
            return self.move(func, name, args, kwargs)
        if name == "copy_":
            return self.copy(first, args[1], kwargs.get("non_blocking", args[2] if len(args) > 2 else False))
        if name == "pin_memory":
            return first.clone().as_subclass(PageLocked)
        if name == "is_pinned":
            return isinstance(first, PageLocked)
        if name == "record_stream":
            return None
        there, here = _sides(args, kwargs)
        wanted = kwargs.pop("device", None)
        on_device = there or (wanted is not None and torch.device(wanted).type == "cuda")
        if wanted is not None and not on_device:
            kwargs["device"] = wanted
        if self.counting and on_device:
            self.count(name, first, args, kwargs, there, here)
        elif there and name in _TO_NUMPY:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        locked = kwargs.pop("pin_memory", False)
        if self.zeroed and on_device and name.startswith(("empty", "new_empty")):
            func = _ZEROED.get(func, func)
        result = func(*args, **kwargs)
        if on_device:
            return _tagged(result)
        if locked or (isinstance(first, PageLocked) and _shares(result, first)):
            return result.as_subclass(PageLocked)
        return result

    def count(
        self,
        name: str,
        first: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        there: bool,
        here: list[torch.Tensor],
    ) -> None:
        """Count an operation on the device; refuse what a device would refuse."""
        if name in _TO_NUMPY:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if name in ("tensor", "as_tensor", "asarray") and not there:
            made = torch.as_tensor(first)
            self.upload(made, "tensor from Python values")
            return
        indexing = name in ("__getitem__", "__setitem__", "index_put_", "index_put")
        if there and here:
            if not indexing or not isinstance(first, OnDevice):
                raise RuntimeError(
                    f"{name}: tensors on the device and on the CPU, {[tuple(t.shape) for t in here]}"
                )
            for tensor in here:
                self.upload(tensor, "index on the CPU")
        masked = indexing and any(_is_mask(part) for part in _flat(args[1:2]))
        unsized = name == "repeat_interleave" and there and kwargs.get("output_size") is None
        if name == "tolist":
            self.download(first, "tolist")
        elif name in _WAITS or (masked and name == "__getitem__") or unsized:
            self.record.downloads.append(_WAITS.get(name, 8))
            self.record.waits[name] += 1
        if name not in _VIEWS and not (name == "__getitem__" and not _advanced(args[1])):
            self.record.operations[name] += 1

    def move(
        self,
        func: Callable[..., Any],
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Do what `Tensor.to` and its like do."""
        tensor, rest = args[0], list(args[1:])
        wanted: Any = {"cpu": "cpu", "cuda": "cuda:0"}.get(name)
        if name == "to":
            wanted = kwargs.pop("device", None)
            if rest and isinstance(rest[0], torch.Tensor):
                wanted, rest[0] = rest[0].device, rest[0].dtype
            elif rest and (rest[0] is None or isinstance(rest[0], str | torch.device)):
                wanted = rest.pop(0)
            for part in [part for part in rest if isinstance(part, bool)][:1]:
                kwargs.setdefault("non_blocking", part)
            rest = [part for part in rest if isinstance(part, torch.dtype)]
        else:
            rest = []
        source = "cuda" if isinstance(tensor, OnDevice) else "cpu"
        target = source if wanted is None else torch.device(wanted).type
        queued = kwargs.pop("non_blocking", False)
        plain = tensor.as_subclass(torch.Tensor)
        result = plain.to(*rest, **kwargs) if rest or kwargs else plain
        if source == target:
            if result is plain:
                return tensor
            if self.counting and source == "cuda":
                self.record.operations["to"] += 1
            return result.as_subclass(OnDevice) if source == "cuda" else result
        if target == "cuda":
            locked = queued and isinstance(tensor, PageLocked)
            if self.counting:
                self.upload(tensor, "" if locked else "copy from memory that is not page-locked")
            return (result if locked else result.clone()).as_subclass(OnDevice)
        if self.counting:
            self.download(tensor, "" if queued else name)
        return result.clone()

    def copy(self, target: torch.Tensor, source: torch.Tensor, queued: bool) -> torch.Tensor:
        """Do what `Tensor.copy_` does."""
        sides = isinstance(source, OnDevice), isinstance(target, OnDevice)
        if self.counting and sides == (False, True):
            locked = queued and isinstance(source, PageLocked)
            self.upload(source, "" if locked else "copy from memory that is not page-locked")
        elif self.counting and sides == (True, False):
            locked = queued and isinstance(target, PageLocked)
            self.download(source, "" if locked else "copy to memory that is not page-locked")
        elif self.counting and sides == (True, True):
            self.record.operations["copy_"] += 1
        target.copy_(source)
        return target

    def upload(self, tensor: torch.Tensor, why: str) -> None:
        """Count a copy to the device, and the wait that it makes for a reason."""
        self.record.uploads.append(tensor.numel() * tensor.element_size())
        if why:
            self.record.waits[why] += 1

    def download(self, tensor: torch.Tensor, why: str) -> None:
        """Count a copy from the device, and the wait that it makes for a reason."""
        self.record.downloads.append(tensor.numel() * tensor.element_size())
        if why:
            self.record.waits[why] += 1


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value


def _sides(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[bool, list[torch.Tensor]]:
    """Return if tensors of the device are among the arguments, and the tensors on the CPU with dimensions."""
    there, here = False, []
    for value in _flat((*args, *kwargs.values())):
        if isinstance(value, OnDevice):
            there = True
        elif isinstance(value, torch.Tensor) and value.dim():
            here.append(value)
    return there, here


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype == torch.bool


def _advanced(index: Any) -> bool:
    return any(
        isinstance(part, torch.Tensor | list) for part in (index if isinstance(index, tuple) else (index,))
    )


def _shares(result: Any, tensor: torch.Tensor) -> bool:
    if not isinstance(result, torch.Tensor):
        return False
    return result.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()


def _tagged(result: Any) -> Any:
    """Mark the tensors of a result as on the device."""
    if isinstance(result, OnDevice):
        return result
    if isinstance(result, torch.Tensor):
        return result.as_subclass(OnDevice)
    if isinstance(result, list | tuple):
        return type(result)(_tagged(part) for part in result)
    return result


class _Event:
    """An event of a stream; waiting for it is a wait of the host."""

    record_of: Record

    def __init__(self, *args: object, **kwargs: object) -> None:
        del args, kwargs

    def record(self, stream: object = None) -> None:
        del stream

    def wait(self, stream: object = None) -> None:
        del stream

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        self.record_of.waits["event"] += 1

    def elapsed_time(self, other: object) -> float:
        del other
        return 0.0


class _Stream:
    """A stream; waiting for it is a wait of the host."""

    record_of: Record
    event: type[_Event]
    cuda_stream = 0
    device = DEVICE

    def __init__(self, *args: object, **kwargs: object) -> None:
        del args, kwargs

    def record_event(self, event: _Event | None = None) -> _Event:
        return event or self.event()

    def wait_event(self, event: object) -> None:
        del event

    def wait_stream(self, stream: object) -> None:
        del stream

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        self.record_of.waits["stream"] += 1


class _Graph:
    """A CUDA graph, whose replay is a single launch."""

    record_of: Record

    def __init__(self, *args: object, **kwargs: object) -> None:
        del args, kwargs

    def replay(self) -> None:
        self.record_of.operations["graph"] += 1


def _context(*args: object, **kwargs: object) -> nullcontext[None]:
    del args, kwargs
    return nullcontext()


def _cuda(record: Record) -> dict[str, Any]:
    """Return what stands for the functions of `torch.cuda`."""
    event = type("Event", (_Event,), {"record_of": record})
    stream = type("Stream", (_Stream,), {"record_of": record, "event": event})
    properties = SimpleNamespace(
        name="recorder", multi_processor_count=PROCESSORS, total_memory=_MEMORY, major=9, minor=0
    )

    def synchronize(device: object = None) -> None:
        del device
        record.waits["synchronize"] += 1

    return {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda device=None: "recorder",
        "get_device_properties": lambda device=None: properties,
        "get_device_capability": lambda device=None: (9, 0),
        "mem_get_info": lambda device=None: (_MEMORY, _MEMORY),
        "max_memory_allocated": lambda device=None: 0,
        "synchronize": synchronize,
        "device": _context,
        "stream": _context,
        "graph": _context,
        "Event": event,
        "Stream": stream,
        "CUDAGraph": type("CUDAGraph", (_Graph,), {"record_of": record}),
        "current_stream": lambda device=None: stream(),
        "default_stream": lambda device=None: stream(),
    }


class _Driver:
    """Triton's driver of the recorded device."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", _CAPABILITY, 32)

    def get_current_device(self) -> str:
        return _CACHE

    def get_current_stream(self, device: str) -> int:
        del device
        return 0

    def get_active_torch_device(self) -> torch.device:
        return DEVICE


class _Variant:
    """In place of a compiled kernel."""

    function = packed_metadata = metadata = None

    def __init__(self, recorder: "_Kernels", kernel: Any, key: str, warps: int) -> None:
        self.recorder, self.key, self.warps = recorder, key, warps
        self.name = kernel.fn.__name__.removesuffix("_kernel")
        self.outputs = {
            place: _OUTPUTS[self.name][argument]
            for place, argument in enumerate(kernel.arg_names)
            if argument in _OUTPUTS.get(self.name, {})
        }

    def launch_metadata(self, grid: tuple[int, ...], stream: int, *args: object) -> None:
        del grid, stream, args

    def run(self, x: int, y: int, z: int, stream: int, *rest: Any) -> None:
        """Record a launch; the last of `rest` are the kernel's arguments, after four of Triton's."""
        del stream
        self.recorder.launched(self, (x, y, z), rest[5:])


class _Kernels:
    """Triton's kernels in the place of a device."""

    def __init__(self, record: Record, counting: bool) -> None:
        self.record, self.counting = record, counting
        self.kernels: list[Any] = []

    def compile(self, kernel: Any, key: str, *args: Any, **kwargs: Any) -> _Variant:
        """Stand for `JITFunction._do_compile`, and put the variant into Triton's cache as that does."""
        signature, device, constants, options, attributes, warmup = args
        del signature, constants, attributes, warmup, kwargs
        self.kernels.append(kernel)
        variant = _Variant(self, kernel, key, options.num_warps)
        kernel.device_caches[device][0][key] = variant
        self.record.compiled.append((variant.name, key))
        return variant

    def launched(self, variant: _Variant, grid: tuple[int, ...], args: tuple[Any, ...]) -> None:
        """Record a launch, and fill outputs while counting."""
        self.record.launches.append(Launch(variant.name, grid, variant.warps, variant.key))
        if not self.counting:
            return
        for place, value in enumerate(args):
            if isinstance(value, torch.Tensor) and not isinstance(value, OnDevice):
                raise ValueError(f"{variant.name}: argument {place} is a tensor on the CPU")
        with torch._C.DisableTorchFunction():
            for place, value in variant.outputs.items():
                args[place].fill_(value)

    def forget(self) -> None:
        """Take the recorder's variants out of Triton's caches."""
        for kernel in self.kernels:
            kernel.device_caches.pop(_CACHE, None)


@contextmanager
def recorded_device(counting: bool = True) -> Iterator[Record]:
    """Let the package use `DEVICE` without a GPU: work meant for it is recorded.

    PyTorch's operations run on the CPU in its place, with tensors marked as being on the device; Triton's
    kernels do not run. Triton binds and looks up every launch as usual. A call that mixes tensors of the
    device and the CPU, or reads one of the device as an array, fails as it does on a GPU.

    Parameters
    ----------
    counting : bool
        Count operations, copies and waits. Without, only launches are recorded and less time is added to
        that of the host.

    Raises
    ------
    RuntimeError
        The kernels were decorated for Triton's interpreter (TRITON_INTERPRET=1).
    """
    if interpreted():
        raise RuntimeError("kernels are interpreted: record them in a process without TRITON_INTERPRET=1")
    record = Record()
    kernels = _Kernels(record, counting)

    def compile_(kernel: Any, key: str, *args: Any, **kwargs: Any) -> _Variant:
        return kernels.compile(kernel, key, *args, **kwargs)

    with ExitStack() as stack:
        stack.enter_context(patch.object(triton.JITFunction, "_do_compile", compile_))
        stack.callback(kernels.forget)
        driver = triton.runtime.driver
        before = driver._active if hasattr(driver, "_active") else None
        driver.set_active(_Driver())
        stack.callback(driver.set_active, before)
        stack.enter_context(marked_device(record, counting, zeroed=counting))
        yield record


@contextmanager
def marked_device(record: Record, counting: bool = True, zeroed: bool = False) -> Iterator[None]:
    """Let PyTorch's part of the package use `DEVICE` without a GPU, see `recorded_device`.

    `zeroed` lets memory of the device hold zeros until something is written there.
    """
    with ExitStack() as stack:
        for name, substitute in _cuda(record).items():
            stack.enter_context(patch.object(torch.cuda, name, substitute))
        stack.enter_context(_Functions(record, counting, zeroed))
        yield
