"""DNANet: a dense grid of attentive residual blocks.

Li et al., "Dense Nested Attention Network for Infrared Small Target Detection", IEEE TIP 2023,
doi:10.1109/TIP.2022.3199107, arXiv:2106.00487.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mclc_gpu.networks.blocks import Detector, Logits, attentive, rescale

_FILTERS = (16, 32, 64, 128, 256)


class DNANet(Detector):
    """DNANet with five levels of 16 to 256 channels, trained with deep supervision.

    4,696,568 parameters for one channel, 4,696,888 for three; 13.9 G multiply-adds for 256x256.

    Node (level, column) takes all earlier nodes of its level, the upsampled node (level + 1, column - 1) and
    the downsampled node (level - 1, column). The last nodes of all levels are fused into the mask. In
    training mode three side outputs follow it: the masks of columns 1, 2 and 3 of the first level.
    """

    divisor = 16
    smallest_size = 32

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__(in_channels)
        depth, first = len(_FILTERS), _FILTERS[0]
        places = [(level, column) for level in range(depth) for column in range(depth - level)]
        self.nodes = nn.ModuleDict(
            {f"{level}_{column}": self._node(level, column) for level, column in places}
        )
        self.narrow = nn.ModuleList(nn.Conv2d(own, first, 1) for own in _FILTERS[1:])
        self.fuse = attentive(depth * first, first)
        self.head = nn.Conv2d(first, 1, 1)
        self.side_heads = nn.ModuleList(nn.Conv2d(first, 1, 1) for _ in range(depth - 2))

    def mask_layers(self) -> list[nn.Conv2d]:
        """Return the heads of the mask and of the side outputs."""
        return [self.head, *self.side_heads]

    def _node(self, level: int, column: int) -> nn.Sequential:
        """Build the block of one node."""
        own = _FILTERS[level]
        above = _FILTERS[level - 1] if level else 0
        inputs = column * own + _FILTERS[level + 1] + above if column else above or self.in_channels
        more = [attentive(own, own)] if level else []
        return nn.Sequential(attentive(inputs, own), *more)

    def segment(self, x: Tensor) -> Logits:
        """Return the logits; see `Detector`."""
        maps: list[list[Tensor]] = [[] for _ in _FILTERS]
        for diagonal in range(len(maps)):
            for level in reversed(range(diagonal + 1)):
                column = diagonal - level
                maps[level].append(self.nodes[f"{level}_{column}"](_inputs(maps, level, column, x)))
        mask = self.head(self._fused([row[-1] for row in maps]))
        if not self.training:
            return Logits((mask,))
        sides = maps[0][1:-1]
        return Logits((mask, *(head(side) for head, side in zip(self.side_heads, sides, strict=True))))

    def _fused(self, ends: list[Tensor]) -> Tensor:
        """Fuse the last maps of all levels, the finest first, into one of the finest level's shape."""
        pairs = zip(self.narrow, ends[1:], strict=True)
        wide = [rescale(narrow(end), 2**level) for level, (narrow, end) in enumerate(pairs, start=1)]
        fused: Tensor = self.fuse(torch.cat([ends[0], *wide], 1))
        return fused


def _inputs(maps: list[list[Tensor]], level: int, column: int, image: Tensor) -> Tensor:
    """Concatenate the input of node (level, column) from the maps computed so far."""
    if column == 0:
        return F.max_pool2d(maps[level - 1][0], 2) if level else image
    above = [rescale(maps[level - 1][column], 0.5)] if level else []
    return torch.cat([*maps[level], rescale(maps[level + 1][column - 1], 2), *above], 1)
