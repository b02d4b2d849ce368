"""Several processes of one run, started by torchrun: shares of the work and messages between the ranks."""

import atexit
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mclc_gpu.errors import InputError
from mclc_gpu.kernels.backend import pick_device

Item = TypeVar("Item")

# The others wait for rank 0 while it labels a data set, and for each other's share of the validation.
_TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """One process of a run and its links to the others.

    Attributes
    ----------
    device : torch.device
        Device of this process.
    rank : int
        Number of this process, from 0; rank 0 writes the files.
    world : int
        Number of processes.
    group : ProcessGroup or None
        Gloo group with a long timeout; None for a single process.
    """

    device: torch.device
    rank: int = 0
    world: int = 1
    group: dist.ProcessGroup | None = None

    @property
    def main(self) -> bool:
        """Return whether this process writes the run's files."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this process's share of `items`: every `world`-th, beginning with item `rank`."""
        return items[self.rank :: self.world]

    def gather(self, item: Item) -> list[Item]:
        """Return the items of all processes in order of rank, in every process."""
        if self.world == 1:
            return [item]
        items: list[Item | None] = [None] * self.world
        with peer_errors():
            dist.all_gather_object(items, item, group=self.group)
        return [received for received in items if received is not None]

    def on_main(self, work: Callable[[], Item]) -> Item:
        """Call `work` on rank 0; return its result, or raise its InputError or OSError, in every process."""
        if self.world == 1:
            return work()
        outcome: list[tuple[Item | None, Exception | None]] = [(None, None)]
        if self.main:
            try:
                outcome = [(work(), None)]
            except (InputError, OSError) as error:
                outcome = [(None, error)]
        with peer_errors():
            dist.broadcast_object_list(outcome, src=0, group=self.group)
        result, problem = outcome[0]
        if problem is not None:
            raise problem
        return result  # type: ignore[return-value]  # None only where work() returned it

    def total(self, numbers: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(numbers)
        return numbers

    def total_with_gradient(self, numbers: Tensor) -> Tensor:
        """Sum a tensor over all processes as part of a loss that each of them then computes alike.

        Gradients grow by the number of processes, so that their average over the processes
        (DistributedDataParallel) is that of the one loss.
        """
        total: Tensor = _Total.apply(numbers, self.world) if self.world > 1 else numbers
        return total

    def broadcast_buffers(self, network: nn.Module) -> None:
        """Give every process rank 0's batch-norm statistics, of which each has gathered its own."""
        if self.world > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)


@contextmanager
def peer_errors() -> Iterator[None]:
    """Turn the Gloo error raised when a peer exits into an InputError."""
    try:
        yield
    except RuntimeError as error:
        # Gloo's errors have no type of their own.
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise InputError("another rank exited; fix the error it reported and rerun with --resume") from error


class _Total(torch.autograd.Function):
    """Sum over processes; see `Ranks.total_with_gradient`."""

    @staticmethod
    def forward(context: Any, numbers: Tensor, world: int) -> Tensor:
        context.world = world
        total = numbers.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return context.world * gradient, None


def join(device: str) -> Ranks:
    """Join the other processes of the run, if torchrun started several, until this one ends.

    Several processes on a machine take the GPU of their local rank and communicate through NCCL; on the CPU
    they communicate through Gloo.

    Parameters
    ----------
    device : str
        "auto", "cpu", "cuda", or, for a single process, "cuda:N".

    Raises
    ------
    InputError
        Unknown or missing device.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    here = pick_device(device)
    if world > 1 and here.type == "cuda":
        if here.index is not None:
            raise InputError(f"device {device}: torchrun gives each process its own GPU; use cuda")
        here = pick_device(f"cuda:{os.environ['LOCAL_RANK']}")
    if world == 1:
        return Ranks(here)
    if here.type == "cuda":
        torch.cuda.set_device(here)
    if not dist.is_initialized():
        # Left only when the process ends: torchrun's store does not let the same process join again.
        dist.init_process_group("nccl" if here.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    return Ranks(here, dist.get_rank(), world, dist.new_group(backend="gloo", timeout=_TIMEOUT))


def exit_process(code: int) -> NoReturn:
    """End this process, one of several, with an exit code and without interpreter shutdown.

    During the shutdown a thread of a process group that acquires the GIL may abort the process.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
