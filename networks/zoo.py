"""Registry of the detectors.

To add a detector, write a subclass of `mclc_gpu.networks.blocks.Detector` in a file of its own and register
it below by its dotted path, or at run time with ``NETWORKS["name"] = MyDetector``. All commands, checkpoints
and the general tests in tests/networks then know it by its name.
"""

from typing import TYPE_CHECKING

from mclc_gpu.registry import Registry

if TYPE_CHECKING:  # PyTorch is imported with the first detector, so that names can be listed quickly
    from mclc_gpu.networks.blocks import Detector

NETWORKS: "Registry[type[Detector]]" = Registry(
    "network",
    {
        "acm": "mclc_gpu.networks.acm.ACM",
        "resunet": "mclc_gpu.networks.resunet.ResUNet",
        "resunet-slim": "mclc_gpu.networks.resunet.SlimResUNet",
        "dnanet": "mclc_gpu.networks.dnanet.DNANet",
        "isnet": "mclc_gpu.networks.isnet.ISNet",
        "uiunet": "mclc_gpu.networks.uiunet.UIUNet",
        "mshnet": "mclc_gpu.networks.mshnet.MSHNet",
        "l2sknet": "mclc_gpu.networks.l2sknet.L2SKNet",
        "sctransnet": "mclc_gpu.networks.sctransnet.SCTransNet",
        "pfan": "mclc_gpu.networks.pfan.PFAN",
        "f3net": "mclc_gpu.networks.f3net.F3Net",
    },
)


def build(name: str, in_channels: int = 1) -> "Detector":
    """Build an initialized detector, in training mode.

    Parameters
    ----------
    name : str
        A name in `NETWORKS`.
    in_channels : int >= 1
        Channels C of the images [B, C, H, W] that it takes.

    Raises
    ------
    InputError
        If there is no network of this name.
    ValueError
        If `in_channels` is below 1.

    Examples
    --------
    >>> import torch
    >>> from mclc_gpu.networks.zoo import build
    >>> network = build("acm").eval()
    >>> network(torch.zeros(1, 1, 50, 70)).masks[0].shape
    torch.Size([1, 1, 50, 70])
    """
    detector = NETWORKS.find(name)(in_channels)
    detector.initialize()
    return detector
