"""L2SKNet: a U-Net whose skip connections contrast every pixel with its surroundings by learned kernels.

Wu, Liu, Zhang, Zhang, Luo & Peng, "Saliency at the Helm: Steering Infrared Small Target Detection With
Learnable Kernels", IEEE Transactions on Geoscience and Remote Sensing 63, 2025,
doi:10.1109/TGRS.2024.3521947.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mclc_gpu.networks.blocks import Detector, Logits, PooledBatchNorm2d, conv_norm_relu

_FILTERS = (16, 32, 64, 128)
# Size and dilation of the saliency kernels of each level, the finest first.
_KERNELS = (((9, 2), (5, 2), (3, 2), (3, 1)), ((5, 2), (3, 2), (3, 1)), ((3, 2), (3, 1)), ((3, 1),))


class SaliencyKernel(nn.Conv2d):
    """Learnable local saliency kernel: "center minus neighbors" with learned weights.

    With the weights w, their sum s over the taps of each pair of channels and their center c:
    s x - w * x + theta(x) c x. The first two terms, which are 0 where x is constant, are one convolution.
    theta, 0 to 1 for each channel, comes from the global mean of the features.
    """

    def __init__(self, channels: int, kernel: int, dilation: int) -> None:
        super().__init__(
            channels, channels, kernel, padding=kernel // 2 * dilation, dilation=dilation, bias=False
        )
        narrow = channels // 4
        self.theta = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            *conv_norm_relu(channels, narrow, kernel=1, norm=PooledBatchNorm2d),
            nn.Conv2d(narrow, channels, 1, bias=False),
            PooledBatchNorm2d(channels),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map features [B, channels, H, W] to features of the same shape; outside the map they are 0."""
        middle = self.kernel_size[0] // 2
        center = self.weight[:, :, middle : middle + 1, middle : middle + 1]
        total = F.pad(self.weight.sum((2, 3), keepdim=True), (middle,) * 4)
        contrast = F.conv2d(x, total - self.weight, padding=self.padding, dilation=self.dilation)
        return contrast + self.theta(x) * F.conv2d(x, center)


class Saliency(nn.Module):
    """Sum of saliency kernels of several sizes; where there is more than one, a convolution mixes the sum.

    Parameters
    ----------
    channels : int
    kernels : sequence of (int, int)
        Size and dilation of each kernel.
    """

    def __init__(self, channels: int, kernels: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.kernels = nn.ModuleList(
            nn.Sequential(
                SaliencyKernel(channels, *kernel), nn.BatchNorm2d(channels), nn.LeakyReLU(0.1, inplace=True)
            )
            for kernel in kernels
        )
        mixed = conv_norm_relu(channels, channels) if len(kernels) > 1 else []
        self.mix = nn.Sequential(*mixed)

    def forward(self, x: Tensor) -> Tensor:
        """Map features [B, channels, H, W] to features of the same shape."""
        first, *others = self.kernels
        total: Tensor = first(x)
        for kernel in others:
            total = total + kernel(x)
        mixed: Tensor = self.mix(total)
        return mixed


class L2SKNet(Detector):
    """L2SKNet in its U-Net form with 16 to 128 channels (L2SKNet-UNet).

    898,913 parameters for one channel, 899,201 for three; 7.0 G multiply-adds for 256x256. Training batches
    hold two images or more, since batch norm follows a global pooling. Published training: soft-IoU loss.
    """

    divisor = 8
    smallest_size = 16
    smallest_batch = 2

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__(in_channels)
        self.down = nn.ModuleList()
        for above, own in zip((in_channels, *_FILTERS), _FILTERS, strict=False):
            self.down.append(_double(above, own))
        self.saliency = nn.ModuleList(map(Saliency, _FILTERS, _KERNELS))
        self.narrow, self.up = nn.ModuleList(), nn.ModuleList()
        for own, below in pairwise(_FILTERS):
            self.narrow.insert(0, nn.Sequential(*conv_norm_relu(below, own, bias=True)))
            self.up.insert(0, _double(2 * own, own))
        self.head = nn.Conv2d(_FILTERS[0], 1, 1)

    def segment(self, x: Tensor) -> Logits:
        """Return the logits; see `Detector`."""
        skips: list[Tensor] = []
        for level, (stage, saliency) in enumerate(zip(self.down, self.saliency, strict=True)):
            x = stage(F.max_pool2d(x, 2) if level else x)
            skips.append(saliency(x))
        x = skips.pop()
        for narrow, stage in zip(self.narrow, self.up, strict=True):
            x = stage(torch.cat([skips.pop(), narrow(F.interpolate(x, scale_factor=2.0))], 1))
        return Logits((self.head(x),))


def _double(in_channels: int, out_channels: int) -> nn.Sequential:
    first = conv_norm_relu(in_channels, out_channels, bias=True)
    return nn.Sequential(*first, *conv_norm_relu(out_channels, out_channels, bias=True))
