"""PFAN: VGG-16 features, deep ones weighted by channel, shallow ones by pixel.

Zhao & Wu, "Pyramid Feature Attention Network for Saliency Detection", CVPR 2019,
doi:10.1109/CVPR.2019.00320, arXiv:1903.00179.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mclc_gpu.networks.backbones import VGG16
from mclc_gpu.networks.blocks import Detector, Logits, conv_norm_relu, rescale

_WIDTH = 64
_PYRAMID = 32  # channels of each of the four sizes of context
_DILATIONS = (3, 5, 7)


class PFAN(Detector):
    """PFAN with a VGG-16 backbone.

    16,183,847 parameters for one channel, 16,184,999 for three; 32.6 G multiply-adds for 256x256.
    `mclc_gpu.networks.backbones.read_backbone` reads the weights of torchvision for the backbone.

    Published training: cross-entropy of the mask and of its outline, 7 to 3; 30 % dropout after each stage of
    the backbone, which is kept here. The published code normalizes by the statistics of the batch at test
    time too; here running statistics are used, so that a result does not depend on the other images.
    """

    divisor = 16
    smallest_size = 32
    pretrained = "vgg16"

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__(in_channels)
        self.backbone = VGG16(in_channels, dropout=0.3)
        self.shallow = nn.ModuleList(
            nn.Sequential(*conv_norm_relu(channels, _WIDTH, bias=True)) for channels in (64, 128)
        )
        self.join = nn.Sequential(*conv_norm_relu(2 * _WIDTH, _WIDTH, bias=True))
        self.pyramids = nn.ModuleList(ContextPyramid(channels) for channels in (256, 512, 512))
        deep = 3 * 4 * _PYRAMID
        self.channel_weights = nn.Sequential(
            nn.Linear(deep, deep // 4), nn.ReLU(inplace=True), nn.Linear(deep // 4, deep), nn.Sigmoid()
        )
        self.narrow = nn.Sequential(*conv_norm_relu(deep, _WIDTH, kernel=1, bias=True))
        self.pixel_weights = nn.ModuleList(_stripes(*shape) for shape in ((1, 9), (9, 1)))
        self.head = nn.Conv2d(2 * _WIDTH, 1, 3, padding=1)

    def segment(self, x: Tensor) -> Logits:
        """Return the logits; see `Detector`."""
        *fine, third, fourth, fifth = self.backbone(x)
        contexts = [
            pyramid(level) for pyramid, level in zip(self.pyramids, (third, fourth, fifth), strict=True)
        ]
        deep = torch.cat(
            [rescale(context, 2**step) if step else context for step, context in enumerate(contexts)], 1
        )
        deep = deep * self.channel_weights(deep.mean((2, 3)))[:, :, None, None]
        deep = rescale(self.narrow(deep), 4)
        across, along = self.pixel_weights
        first, second = (layer(level) for layer, level in zip(self.shallow, fine, strict=True))
        shallow = self.join(torch.cat([first, rescale(second, 2)], 1))
        shallow = shallow * torch.sigmoid(across(deep) + along(deep))
        return Logits((self.head(torch.cat([shallow, deep], 1)),))


class ContextPyramid(nn.Module):
    """Context-aware feature extraction: a 1x1 convolution beside 3x3 ones of dilation 3, 5 and 7."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(channels, _PYRAMID, 1, bias=False)])
        for dilation in _DILATIONS:
            self.layers.append(nn.Conv2d(channels, _PYRAMID, 3, 1, dilation, dilation, bias=False))
        self.norm = nn.BatchNorm2d(4 * _PYRAMID)

    def forward(self, x: Tensor) -> Tensor:
        """Map features [B, channels, H, W] to [B, 128, H, W]."""
        return F.relu(self.norm(torch.cat([layer(x) for layer in self.layers], 1)))


def _stripes(rows: int, columns: int) -> nn.Sequential:
    """Build spatial attention of two crossed stripes of pixels: [B, 64, H, W] to [B, 1, H, W]."""
    narrow = _WIDTH // 2
    return nn.Sequential(
        nn.Conv2d(_WIDTH, narrow, (rows, columns), padding=(rows // 2, columns // 2)),
        nn.BatchNorm2d(narrow),
        nn.ReLU(inplace=True),
        nn.Conv2d(narrow, 1, (columns, rows), padding=(columns // 2, rows // 2)),
        nn.BatchNorm2d(1),
        nn.ReLU(inplace=True),
    )
