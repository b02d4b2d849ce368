"""F3Net: ResNet-50 features, fused by multiplication in a decoder that runs twice, fed back in between.

Wei, Wang & Huang, "F3Net: Fusion, Feedback and Focus for Salient Object Detection", AAAI 2020,
doi:10.1609/aaai.v34i07.6916, arXiv:1911.11445.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from mclc_gpu.networks.backbones import ResNet50
from mclc_gpu.networks.blocks import Detector, Logits, conv_norm_relu

_WIDTH = 64


class F3Net(Detector):
    """F3Net with a ResNet-50 backbone and two cascaded feedback decoders of 64 channels.

    25,530,438 parameters for one channel, 25,536,710 for three; 8.5 G multiply-adds for 256x256.
    `mclc_gpu.networks.backbones.read_backbone` reads the weights of torchvision for the backbone.

    The mask is that of the second decoder. In training mode five side outputs follow it: the mask of the
    first decoder, and those of the second decoder's four levels from the finest to the coarsest. Published
    training: cross-entropy plus IoU, both weighted more near outlines, in which the levels count 1/2 to 1/16
    of the masks; the losses here count all outputs alike.
    """

    divisor = 32
    smallest_size = 64
    pretrained = "resnet50"

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__(in_channels)
        self.backbone = ResNet50(in_channels)
        self.squeeze = nn.ModuleList(
            nn.Sequential(*conv_norm_relu(4 * inner, _WIDTH, kernel=1, bias=True))
            for inner in (64, 128, 256, 512)
        )
        self.decoders = nn.ModuleList(Decoder() for _ in range(2))
        self.heads = nn.ModuleList(_head() for _ in self.decoders)
        self.side_heads = nn.ModuleList(_head() for _ in self.squeeze)

    def segment(self, x: Tensor) -> Logits:
        """Return the logits; see `Detector`."""
        levels = [squeeze(stage) for squeeze, stage in zip(self.squeeze, self.backbone(x), strict=True)]
        levels, first = self.decoders[0](levels)
        levels = [level + _resize(first, level) for level in levels]
        levels, second = self.decoders[1](levels)
        found = [(self.heads[1], second)]
        if self.training:
            found += [(self.heads[0], first), *zip(self.side_heads, levels, strict=True)]
        return Logits(tuple(_resize(head(features), x) for head, features in found))

    def mask_layers(self) -> list[nn.Conv2d]:
        """Return the heads of both decoders and of the levels."""
        return [head for head in (*self.heads, *self.side_heads) if isinstance(head, nn.Conv2d)]


class CrossFeature(nn.Module):
    """Cross feature module: skipped and deep features multiply, and the product refines both."""

    def __init__(self) -> None:
        super().__init__()
        self.skipped, self.deep = (
            nn.ModuleList(nn.Sequential(*conv_norm_relu(_WIDTH, _WIDTH, bias=True)) for _ in range(4))
            for _ in range(2)
        )

    def forward(self, skipped: Tensor, deep: Tensor) -> tuple[Tensor, Tensor]:
        """Refine skipped features [B, 64, H, W] and deep ones of a coarser level, enlarged to their size."""
        deep = _resize(deep, skipped)
        kept_skipped, kept_deep = self.skipped[0](skipped), self.deep[0](deep)
        product = self.skipped[1](kept_skipped) * self.deep[1](kept_deep)
        skipped = self.skipped[3](self.skipped[2](product) + kept_skipped)
        return skipped, self.deep[3](self.deep[2](product) + kept_deep)


class Decoder(nn.Module):
    """Cascade of cross feature modules from the coarsest of four levels to the finest."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList(CrossFeature() for _ in range(3))

    def forward(self, levels: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Refine four levels [B, 64, H, W], the finest first; return them, and the result at its size."""
        refined, deep = [levels[-1]], levels[-1]
        for step, level in zip(self.steps, reversed(levels[:-1]), strict=True):
            skipped, deep = step(level, deep)
            refined.insert(0, skipped)
        return refined, deep


def _head() -> nn.Conv2d:
    return nn.Conv2d(_WIDTH, 1, 3, padding=1)


def _resize(features: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(features, size=like.shape[-2:], mode="bilinear", align_corners=False)
