"""MSHNet: a U-Net of attentive residual blocks with a head at every scale of its decoder.

Liu, Liu, Zheng, Wang & Fu, "Infrared Small Target Detection with Scale and Location Sensitivity", CVPR 2024,
arXiv:2403.19366.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mclc_gpu.networks.blocks import Detector, Logits, attentive, rescale, set_fusion_prior

_FILTERS = (16, 32, 64, 128, 256)


class MSHNet(Detector):
    """MSHNet with five levels of 16 to 256 channels.

    4,065,481 parameters for one channel, 4,065,513 for three; 6.0 G multiply-adds for 256x256.

    The mask is a 3x3 convolution of the predictions of the four decoder levels, enlarged to the image's size.
    In training mode these predictions follow it, from the finest to the coarsest.

    Published training: the loss "sls" on all five. There the coarse predictions are compared with reduced
    masks; here they are enlarged and compared with the mask itself. In its first five epochs the published
    code trains the finest prediction alone, here the whole network learns from the first step.
    """

    divisor = 16
    smallest_size = 32

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__(in_channels)
        first, *_ = _FILTERS
        self.start = nn.Conv2d(in_channels, first, 1)
        self.down = nn.ModuleList([_stage(first, first, 1)])
        self.up = nn.ModuleList()
        for level, (above, own) in enumerate(pairwise(_FILTERS)):
            self.down.append(_stage(above, own, 2))
            self.up.insert(0, _stage(above + own, above, 2 if level else 1))
        self.heads = nn.ModuleList(nn.Conv2d(own, 1, 1) for own in _FILTERS[:-1])
        self.fusion = nn.Conv2d(len(self.heads), 1, 3, padding=1)

    def segment(self, x: Tensor) -> Logits:
        """Return the logits; see `Detector`."""
        first, *deeper = self.down
        skips = [first(self.start(x))]
        for stage in deeper:
            skips.append(stage(F.max_pool2d(skips[-1], 2)))
        maps = [skips.pop()]
        for stage in self.up:
            maps.insert(0, stage(torch.cat([skips.pop(), rescale(maps[0], 2)], 1)))
        pairs = enumerate(zip(self.heads, maps, strict=False))
        sides = [rescale(head(features), 2**level) for level, (head, features) in pairs]
        mask = self.fusion(torch.cat(sides, 1))
        return Logits((mask, *sides) if self.training else (mask,))

    def mask_layers(self) -> list[nn.Conv2d]:
        """Return the heads of all scales."""
        return [head for head in self.heads if isinstance(head, nn.Conv2d)]

    def set_prior(self, logit: float) -> None:
        """Let the masks start near a logit; see `Detector`."""
        super().set_prior(logit)
        set_fusion_prior(self.fusion, logit)


def _stage(in_channels: int, out_channels: int, blocks: int) -> nn.Sequential:
    first = attentive(in_channels, out_channels)
    return nn.Sequential(first, *(attentive(out_channels, out_channels) for _ in range(blocks - 1)))
