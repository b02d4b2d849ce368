"""Distance of the kernels to what the machine can do: operations, bytes, measured peaks."""

import torch

from mclc_gpu.bench.tables import Row


def roofline(device: torch.device) -> list[Row]:
    """Operations, bytes, floors and measured time of every kernel on synthetic targets.

    Parameters
    ----------
    device : torch.device
        Where the kernels run: the CPU backend or, on "cuda", Triton.

    Returns
    -------
    list of Row, one for each stage, all with these columns
        kernel, work (str): the stage and what it was run on.
        operations, bytes (float): least arithmetic operations (32-bit, per lane) and least bytes moved.
        operations_s, bytes_s (float): their floors in seconds, at the peaks of the last two rows.
        seconds (float): median measured time.
        share (float): the larger floor over the measured time, 0..1.
        bound (str): "operations" or "bytes", whichever floor is larger.
        The last two rows are the measured peaks themselves ("peak operations", "peak bytes").
    """
    raise NotImplementedError
