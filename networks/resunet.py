"""ResUNet: a U-Net of residual blocks.

Ronneberger et al., "U-Net", MICCAI 2015, arXiv:1505.04597, with the residual blocks of Zhang et al., "Road
Extraction by Deep Residual U-Net", IEEE GRSL 2018, doi:10.1109/LGRS.2018.2802944, arXiv:1711.10684.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mclc_gpu.networks.blocks import Detector, Logits, Residual, rescale


class ResUNet(Detector):
    """Five levels of `width` filters and up, doubling: two blocks each on the way down, one on the way up.

    The first level has one block on either way.
    """

    divisor = 16
    smallest_size = 32
    width = 16

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__(in_channels)
        first, *deeper = filters = [self.width * 2**level for level in range(5)]
        self.down = nn.ModuleList([Residual(in_channels, first)])
        for above, own in zip(filters, deeper, strict=False):
            self.down.append(nn.Sequential(Residual(above, own), Residual(own, own)))
        self.up = nn.ModuleList(Residual(3 * own, own) for own in reversed(filters[:-1]))
        self.head = nn.Conv2d(first, 1, 1)

    def segment(self, x: Tensor) -> Logits:
        first, *deeper = self.down
        skips = [first(x)]
        for level in deeper:
            skips.append(level(F.max_pool2d(skips[-1], 2)))
        x = skips.pop()
        for level in self.up:
            x = level(torch.cat([skips.pop(), rescale(x, 2)], 1))
        return Logits((self.head(x),))


class SlimResUNet(ResUNet):
    """Half the filters at every level."""

    width = 8
