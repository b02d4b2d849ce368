"""Need for every barrier of the kernels: without any one of these, the emulator finds a fault.

Sums over warps and changes of a tensor's layout bring barriers of their own into the compiled code.
`STAND_INS` names the barriers that these make unnecessary with the present release of Triton, where another
one may compile otherwise, and those of lanes that are one thread each, but two where a warp has 64 threads.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from emulated_cases import BARRIERS, Case, functions

from mclc_gpu.bench.ptx.launch import emulated
from mclc_gpu.bench.ptx.machine import ORDERS, MachineError
from mclc_gpu.kernels.backend import interpreted

STAND_INS = {
    "candidates_triton.bright_rows 1", "candidates_triton.grow 2", "candidates_triton.join_levels 2",
    "candidates_triton.ring_levels 2", "candidates_triton.ring_medians 1", "candidates_triton.ring_medians 2",
    "candidates_triton.ring_medians 3", "components_triton.read_window 1", "components_triton.background 1",
    "components_triton.background 2", "components_triton.background 3", "components_triton.vote 1",
    "components_triton.components_kernel 1", "connectivity_triton.fill_border 1",
    "candidates_triton.clear_rows 1", "candidates_triton.spread 2",
}  # fmt: skip
FUNCTIONS = {} if interpreted() else functions()


def _has_barrier(text: str) -> bool:
    return text.strip().startswith("tl.debug_barrier()")


@dataclass(frozen=True)
class Barrier:
    """A line of a function's source that has a barrier; `source_line` is that of its file."""

    function: str
    line: int

    @property
    def name(self) -> str:
        """Name of the function, and which of its barriers it is: "trials_triton.cluster 2"."""
        lines = FUNCTIONS[self.function].src.split("\n")[: self.line + 1]
        return f"{self.function} {sum(map(_has_barrier, lines))}"

    @property
    def source_line(self) -> str:
        function = FUNCTIONS[self.function]
        before = "".join(function.raw_src).index(function.src)
        first = function.starting_line_number + "".join(function.raw_src)[:before].count("\n")
        return f"{self.function.partition('.')[0]}.py:{first + self.line}"

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """Compile the kernels without the barrier meanwhile."""
        function = FUNCTIONS[self.function]
        source = function.src
        lines = source.split("\n")
        lines[self.line] = lines[self.line].replace("tl.debug_barrier()", "pass")
        try:
            self._set("\n".join(lines))
            yield
        finally:
            self._set(source)

    def _set(self, source: str) -> None:
        FUNCTIONS[self.function]._unsafe_update_src(source)
        for function in FUNCTIONS.values():
            function.hash = None  # it depends on the sources of what the function calls


ALL = [
    Barrier(name, line)
    for name, function in FUNCTIONS.items()
    for line, text in enumerate(function.src.split("\n"))
    if _has_barrier(text)
]


def fault(case: Case, order: str) -> str:
    """Return what is wrong with a case, "" if nothing is."""
    try:
        with emulated(order, races=True):
            result = case.call("triton")
    except MachineError as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    apart = case.differences(case.call("cpu"), result)
    return f"results differ by {apart}" if apart else ""


def first_fault(barrier: Barrier) -> str:
    """Return the first fault that shows without a barrier, and in which case; "" if there is none."""
    for case in BARRIERS:
        with emulated(races=True) as emulator:
            case.call("triton")
        if barrier.source_line in emulator.counts.lines:
            with barrier.left_out():
                for order in ORDERS:
                    if found := fault(case, order):
                        return f"{case.name}, {order}: {found}"
    return ""


def test_some_barriers_are_needed() -> None:
    quick = [b for b in ALL if b.function == "connectivity_triton.relabel_lanes"]
    assert quick
    for barrier in quick:
        assert first_fault(barrier), f"nothing needs the barrier at {barrier.source_line}"


@pytest.mark.slow
@pytest.mark.parametrize("barrier", ALL, ids=lambda barrier: barrier.name)
def test_every_barrier_is_needed(barrier: Barrier) -> None:
    found = first_fault(barrier)
    print(f"{barrier.name} ({barrier.source_line}): {found or 'nothing needs it'}")
    assert found or barrier.name in STAND_INS, f"delete the barrier at {barrier.source_line}"
