"""ACM: a small U-Net whose skip connections are fused by asymmetric attention.

Dai, Wu, Zhou & Barnard, "Asymmetric Contextual Modulation for Infrared Small Target Detection", WACV 2021,
doi:10.1109/WACV48630.2021.00099, arXiv:2009.14530.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from mclc_gpu.networks.blocks import (
    Detector,
    Logits,
    PooledBatchNorm2d,
    conv_norm_relu,
    mask_head,
    quarter_stem,
    residual_stage,
)


class ACM(Detector):
    """ACM in its U-Net form with three residual blocks per stage.

    397,823 parameters for one channel, 397,971 for three; 0.34 G multiply-adds for 256x256. Training batches
    hold two images or more, since batch norm follows a global pooling.
    """

    divisor = 16
    smallest_size = 16
    smallest_batch = 2

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__(in_channels)
        self.stem = quarter_stem(in_channels, 8)
        self.stage1 = residual_stage(16, 16, blocks=3)
        self.stage2 = residual_stage(16, 32, blocks=3, stride=2)
        self.stage3 = residual_stage(32, 64, blocks=3, stride=2)
        self.up2 = nn.ConvTranspose2d(64, 32, 4, 2, 1)
        self.fuse2 = AsymmetricFusion(32)
        self.decode2 = residual_stage(32, 32, blocks=3)
        self.up1 = nn.ConvTranspose2d(32, 16, 4, 2, 1)
        self.fuse1 = AsymmetricFusion(16)
        self.decode1 = residual_stage(16, 16, blocks=3)
        self.head = mask_head(16)

    def segment(self, x: Tensor) -> Logits:
        """Return the logits; see `Detector`."""
        skip1 = self.stage1(self.stem(x))
        skip2 = self.stage2(skip1)
        deep = self.stage3(skip2)
        deep = self.decode2(self.fuse2(self.up2(deep), skip2))
        deep = self.decode1(self.fuse1(self.up1(deep), skip1))
        return Logits((F.interpolate(self.head(deep), scale_factor=4, mode="bilinear"),))


class AsymmetricFusion(nn.Module):
    """Fuse deep features and those of a skip connection, each weighted by attention from the other.

    Deep features weight the channels of the skip (global attention), the skip weights the pixels of the deep
    features (pointwise attention).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channel_weights = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), *_bottleneck(channels, PooledBatchNorm2d)
        )
        self.pixel_weights = nn.Sequential(*_bottleneck(channels, nn.BatchNorm2d))
        self.after = nn.Sequential(*conv_norm_relu(channels, channels, bias=True))

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        """Fuse two feature maps [B, channels, H, W] into one."""
        # Doubled, so that attention of 0.5 everywhere leaves the plain sum.
        fused = 2 * self.channel_weights(deep) * skip + 2 * self.pixel_weights(skip) * deep
        out: Tensor = self.after(fused)
        return out


def _bottleneck(channels: int, norm: type[nn.BatchNorm2d]) -> list[nn.Module]:
    """Build pointwise attention: weights in 0..1, through a bottleneck of a quarter of the channels."""
    narrow = channels // 4
    widen = [nn.Conv2d(narrow, channels, 1), norm(channels), nn.Sigmoid()]
    return [*conv_norm_relu(channels, narrow, kernel=1, bias=True, norm=norm), *widen]
