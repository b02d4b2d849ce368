"""Several processes of one run, started by torchrun: who does what, and what they tell each other."""

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

# Others wait for rank 0 while it labels a data set, and for each other's share of the validation.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run.

    Attributes:
        device: Where this process computes.
        rank: Its number, from 0; rank 0 writes the files.
        world: How many there are.
        group: Carries messages between them, and waits long; None for a single process.
    """

    device: torch.device
    rank: int = 0
    world: int = 1
    group: dist.ProcessGroup | None = None

    @property
    def main(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of `items`: every `world`-th."""
        return items[self.rank :: self.world]

    def gather(self, item: Item) -> list[Item]:
        """The item of every process, in order of their ranks, for every process."""
        if self.world == 1:
            return [item]
        items: list[Item | None] = [None] * self.world
        with all_there():
            dist.all_gather_object(items, item, group=self.group)
        return [received for received in items if received is not None]

    def on_main(self, work: Callable[[], Item]) -> Item:
        """What `work` returns on rank 0, for every process; the others wait.

        Its InputError or OSError is theirs too.
        """
        if self.world == 1:
            return work()
        outcome: list[tuple[Item | None, Exception | None]] = [(None, None)]
        if self.main:
            try:
                outcome = [(work(), None)]
            except (InputError, OSError) as error:
                outcome = [(None, error)]
        with all_there():
            dist.broadcast_object_list(outcome, src=0, group=self.group)
        result, problem = outcome[0]
        if problem is not None:
            raise problem
        return result  # type: ignore[return-value]  # None only where work() returned it

    def total(self, numbers: Tensor) -> Tensor:
        """Sum over all processes."""
        if self.world > 1:
            dist.all_reduce(numbers)
        return numbers

    def total_with_gradient(self, numbers: Tensor) -> Tensor:
        """Sum over all processes, as a part of a loss that each of them then computes alike.

        Gradients grow by the number of processes, so that their average over the processes
        (DistributedDataParallel) is that of the one loss.
        """
        total: Tensor = _Total.apply(numbers, self.world) if self.world > 1 else numbers
        return total

    def equalise(self, network: nn.Module) -> None:
        """Give every process rank 0's batch-norm statistics, of which each has gathered its own."""
        if self.world > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)


@contextmanager
def all_there() -> Iterator[None]:
    """Processes that end close their connections; what those say that wait for them becomes one line.

    Raises:
        InputError: Another process of the run has ended.
    """
    try:
        yield
    except RuntimeError as error:
        # Gloo's errors have no type of their own.
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise InputError(
            "another process of this run has ended; mend what it says, then go on with --resume"
        ) from error


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

    `device`: "auto", "cpu", "cuda", or, for a single process, "cuda:N". Of several processes on a machine
    each takes the GPU of its local rank and talks through NCCL; on the CPU they talk through gloo.

    Raises:
        InputError: Unknown or missing device.
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
    return Ranks(here, dist.get_rank(), world, dist.new_group(backend="gloo", timeout=_PATIENCE))


def leave(code: int) -> NoReturn:
    """End this process, one of several, with an exit code, without taking the interpreter down first.

    A thread of a process group that comes for Python's lock while that goes on may abort the process.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
