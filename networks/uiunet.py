"""UIU-Net: a U-Net whose stages are small U-Nets, with attention across its skip connections.

Wu, Hong & Chanussot, "UIU-Net: U-Net in U-Net for Infrared Small Object Detection", IEEE Transactions on
Image Processing 32, 2023, doi:10.1109/TIP.2022.3228497, arXiv:2212.00968. The nested U-Net is that of Qin et
al., "U2-Net: Going Deeper with Nested U-Structure for Salient Object Detection", Pattern Recognition 106,
2020, doi:10.1016/j.patcog.2020.107404, arXiv:2005.09007.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mclc_gpu.networks.blocks import Detector, Logits, PooledBatchNorm2d, conv_norm_relu, set_fusion_prior


def _layer(in_channels: int, out_channels: int, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(*conv_norm_relu(in_channels, out_channels, bias=True, dilation=dilation))


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class ResidualU(nn.Module):
    """Residual U-block (RSU): a small U-Net whose output is added to that of its first layer.

    Parameters
    ----------
    in_channels, inner_channels, out_channels : int
        Channels of the input, of the inner levels and of the output.
    depth : int
        Levels. Each halves the size, except the last one, which is dilated.
    dilated : bool
        Keep the size at every level and use dilations of 1, 2, 4, ... instead.
    """

    def __init__(
        self, in_channels: int, inner_channels: int, out_channels: int, depth: int, dilated: bool = False
    ) -> None:
        super().__init__()
        dilations = [2**level if dilated else 1 for level in range(depth - 1)]
        self.dilated = dilated
        self.start = _layer(in_channels, out_channels)
        self.down = nn.ModuleList(
            _layer(inner_channels if level else out_channels, inner_channels, dilation)
            for level, dilation in enumerate(dilations)
        )
        self.bottom = _layer(inner_channels, inner_channels, 2 * dilations[-1])
        self.up = nn.ModuleList(
            _layer(2 * inner_channels, inner_channels if level else out_channels, dilation)
            for level, dilation in enumerate(dilations)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map features [B, in_channels, H, W] to [B, out_channels, H, W].

        H and W are multiples of 2 ** (depth - 2), unless the block is dilated.
        """
        start = self.start(x)
        levels = [self.down[0](start)]
        for layer in self.down[1:]:
            levels.append(layer(levels[-1] if self.dilated else F.max_pool2d(levels[-1], 2)))
        x = self.bottom(levels[-1])
        for step, (layer, skipped) in enumerate(zip(reversed(self.up), reversed(levels), strict=True)):
            if step and not self.dilated:
                x = _double(x)
            x = layer(torch.cat((x, skipped), dim=1))
        return x + start


class CrossAttention(nn.Module):
    """Interactive-cross attention: deep features weight the channels of skipped ones, these its pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = channels // 4
        self.prepare = nn.Sequential(*conv_norm_relu(channels, channels, kernel=1, bias=True))
        self.of_channels = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            *conv_norm_relu(channels, narrow, kernel=1, bias=True, norm=PooledBatchNorm2d),
            nn.Conv2d(narrow, channels, 1),
            PooledBatchNorm2d(channels),
            nn.Sigmoid(),
        )
        self.squeeze = nn.Sequential(*conv_norm_relu(channels, narrow, kernel=1, bias=True))
        self.of_pixels = nn.Sequential(nn.Conv2d(2, 1, 3, padding=1, bias=False), nn.Sigmoid())
        self.finish = _layer(channels, channels)

    def forward(self, deep: Tensor, skipped: Tensor) -> Tensor:
        """Map two feature maps [B, channels, H, W] to their concatenation [B, 2 channels, H, W]."""
        deep = self.prepare(deep)
        skipped = skipped * self.of_channels(deep)
        squeezed = self.squeeze(skipped)
        summary = torch.cat((squeezed.mean(1, keepdim=True), squeezed.amax(1, keepdim=True)), dim=1)
        deep = deep * self.of_pixels(summary)
        # Not as one batch: each of the two is normalized by its own statistics.
        return torch.cat((self.finish(2 * skipped), self.finish(2 * deep)), dim=1)


class UIUNet(Detector):
    """UIU-Net with 64 to 512 channels: five stages down, one below, five up, and six side outputs.

    50,540,309 parameters for one channel, 50,541,461 for three; 54.3 G multiply-adds for 256x256.

    The mask is the fusion of six side outputs by a 1x1 convolution; in training mode these side outputs
    follow it from the finest to the coarsest. Published training: the sum of seven binary cross-entropies.

    The published code takes any size and lets the pooling round up; here images are padded to multiples of
    32, which keeps the levels aligned.
    """

    divisor = 32
    smallest_size = 64
    smallest_batch = 2

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__(in_channels)
        self.encoder = nn.ModuleList(
            (
                ResidualU(in_channels, 32, 64, depth=7),
                ResidualU(64, 32, 128, depth=6),
                ResidualU(128, 64, 256, depth=5),
                ResidualU(256, 128, 512, depth=4),
                ResidualU(512, 256, 512, depth=4, dilated=True),
            )
        )
        self.bottom = ResidualU(512, 256, 512, depth=4, dilated=True)
        self.decoder = nn.ModuleList(
            (
                ResidualU(128, 16, 64, depth=7),
                ResidualU(256, 32, 64, depth=6),
                ResidualU(512, 64, 128, depth=5),
                ResidualU(1024, 128, 256, depth=4),
                ResidualU(1024, 256, 512, depth=4, dilated=True),
            )
        )
        self.attention = nn.ModuleList(CrossAttention(channels) for channels in (128, 256, 512, 512))
        self.sides = nn.ModuleList(
            nn.Conv2d(channels, 1, 3, padding=1) for channels in (64, 64, 128, 256, 512, 512)
        )
        self.fusion = nn.Conv2d(6, 1, 1)

    def segment(self, x: Tensor) -> Logits:
        """Return the logits; see `Detector`."""
        levels: list[Tensor] = []
        for level, stage in enumerate(self.encoder):
            levels.append(stage(F.max_pool2d(levels[-1], 2) if level else x))
        maps = [self.bottom(F.max_pool2d(levels[-1], 2))]
        for level in range(4, -1, -1):
            deep, skipped = _double(maps[0]), levels[level]
            joined = self.attention[level - 1](deep, skipped) if level else torch.cat((deep, skipped), dim=1)
            maps.insert(0, self.decoder[level](joined))
        sides = [self._enlarge(side(features), x) for side, features in zip(self.sides, maps, strict=True)]
        mask = self.fusion(torch.cat(sides, dim=1))
        return Logits((mask, *sides) if self.training else (mask,))

    def set_prior(self, logit: float) -> None:
        """Let the masks start near a logit; see `Detector`. The fusion adds to those of the side outputs."""
        super().set_prior(logit)
        if self.fusion.bias is not None:
            set_fusion_prior(self.fusion, logit)

    def mask_layers(self) -> list[nn.Conv2d]:
        """Return the convolutions of the side outputs and their fusion."""
        return [layer for layer in (*self.sides, self.fusion) if isinstance(layer, nn.Conv2d)]

    @staticmethod
    def _enlarge(logits: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(logits, size=like.shape[-2:], mode="bilinear", align_corners=False)
