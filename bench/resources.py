"""What every Triton kernel takes of a GPU, compiled ahead of time: no GPU is needed."""

from collections.abc import Sequence

from mclc_gpu.bench.tables import Row


def resources(architectures: Sequence[str] = ("sm_80", "sm_90", "gfx942")) -> list[Row]:
    """Registers, spills, shared memory and occupancy of every Triton kernel at its usual block shapes.

    Parameters
    ----------
    architectures : sequence of str
        "sm_80" (A100), "sm_90" (H100, H200), "gfx942" (MI300).

    Returns
    -------
    list of Row, all with these columns
        kernel, shape, architecture (str), warps (int).
        registers (int per thread), spills (int, bytes of stack per thread), shared (int, bytes per program).
        programs (int per processor), occupancy (float 0..1, resident warps over the most possible).
        limit (str): what keeps more programs away.
        instructions (float or None): machine instructions of the inner loop per `unit` (str or None).
        failure (str or None): why it does not compile; all numbers are then None.

    Raises
    ------
    RuntimeError
        The kernels were decorated for Triton's interpreter (TRITON_INTERPRET=1).
    """
    raise NotImplementedError
