"""The detectors by name."""

from mclc_gpu.networks.acm import ACM
from mclc_gpu.networks.blocks import Detector
from mclc_gpu.networks.dnanet import DNANet
from mclc_gpu.networks.isnet import ISNet
from mclc_gpu.networks.resunet import ResUNet, SlimResUNet
from mclc_gpu.networks.uiunet import UIUNet

NETWORKS: dict[str, type[Detector]] = {
    "acm": ACM,
    "resunet": ResUNet,
    "resunet-slim": SlimResUNet,
    "dnanet": DNANet,
    "isnet": ISNet,
    "uiunet": UIUNet,
}


def build(name: str, in_channels: int = 1) -> Detector:
    """An initialised detector, in training mode, for images [B, in_channels, H, W].

    Raises ValueError for a name that is not in NETWORKS and for fewer than one channel.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}: choose one of {', '.join(NETWORKS)}")
    detector = NETWORKS[name](in_channels)
    detector.initialise()
    return detector
