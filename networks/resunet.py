"""ResUNet: a U-Net of residual blocks.

Ronneberger, Fischer & Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015,
doi:10.1007/978-3-319-24574-4_28, arXiv:1505.04597, with the residual blocks of Zhang, Liu & Wang, "Road
Extraction by Deep Residual U-Net", IEEE GRSL 2018, doi:10.1109/LGRS.2018.2802944, arXiv:1711.10684.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mclc_gpu.networks.blocks import Detector, Logits, Residual, rescale


class ResUNet(Detector):
    """ResUNet with five levels of 16 to 256 channels.

    3,645,905 parameters for one channel, 3,646,225 for three; 4.9 G multiply-adds for 256x256. The encoder
    has one residual block on the first level and two on each deeper one, the decoder one per level. `width`:
    channels of the first level, doubled from level to level.
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
        """Return the logits; see `Detector`."""
        first, *deeper = self.down
        skips = [first(x)]
        for level in deeper:
            skips.append(level(F.max_pool2d(skips[-1], 2)))
        x = skips.pop()
        for level in self.up:
            x = level(torch.cat([skips.pop(), rescale(x, 2)], 1))
        return Logits((self.head(x),))


class SlimResUNet(ResUNet):
    """ResUNet with half the channels at every level: 914,057 parameters for three channels."""

    width = 8
