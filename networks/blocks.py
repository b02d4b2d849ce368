"""What the detectors share: their outputs, their base class, and the parts that more than one of them has."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


class Logits(NamedTuple):
    """What a detector answers; a sigmoid turns its values into probabilities.

    masks : float [B, 1, H, W] each; the answer first, then the deeply supervised side outputs, which exist in
        training mode only.
    edge : float [B, 1, H, W], outlines of the targets; networks with an edge branch in training mode only.
    """

    masks: tuple[Tensor, ...]
    edge: Tensor | None = None


class Detector(nn.Module, ABC):
    """A segmentation network for images of any size.

    Sub-classes define `segment` and say by class attributes what it can take:

    divisor : height and width must be multiples of it.
    smallest_size : least height and width, a multiple of `divisor`. Batch norm cannot train on a single value
        a channel, so it should leave the deepest map more than one pixel.
    smallest_batch : least number of images in training mode: 2 for networks with batch norm after global
        pooling, where each image leaves one value a channel. A training loop drops a smaller last batch.
    """

    divisor: int = 1
    smallest_size: int = 1
    smallest_batch: int = 1

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        if in_channels < 1:
            raise ValueError(f"in_channels must be 1 or more, got {in_channels}")
        self.in_channels = in_channels

    @abstractmethod
    def segment(self, x: Tensor) -> Logits:
        """Logits of images [B, in_channels, H, W] of a size the network can take."""

    def forward(self, x: Tensor) -> Logits:
        """Logits of images of any size from 1x1, which are padded at the right and bottom, never resized.

        Parameters
        ----------
        x : floating-point Tensor [B, in_channels, H, W], normalised to a mean near 0 and a deviation near 1.

        Raises
        ------
        ValueError
            Wrong shape, number of channels or dtype; in training mode, fewer than `smallest_batch` images.
        """
        self._check(x)
        height, width = x.shape[-2:]
        bottom, right = self._missing(height), self._missing(width)
        masks, edge = self.segment(F.pad(x, (0, right, 0, bottom), mode="replicate"))
        cropped = tuple(mask[..., :height, :width] for mask in masks)
        return Logits(cropped, None if edge is None else edge[..., :height, :width])

    def initialize(self) -> None:
        """Set all parameters and statistics to their start: Xavier normal weights, biases and offsets 0.

        Glorot & Bengio, AISTATS 2010. Batch norm starts as the identity; a `ZeroConv2d` stays zero.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            if isinstance(module, nn.BatchNorm2d | ZeroConv2d):
                module.reset_parameters()

    def _missing(self, size: int) -> int:
        """Pixels that a side of `size` lacks to one that the network can take."""
        # Not by floor division of a negative, which ONNX rounds towards zero.
        multiple = (size + self.divisor - 1) // self.divisor * self.divisor
        return max(multiple, self.smallest_size) - size

    def _check(self, x: Tensor) -> None:
        name = type(self).__name__
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"{name} takes images [B, {self.in_channels}, H, W], got {list(x.shape)}")
        if x.numel() == 0:
            raise ValueError(f"{name} needs at least one image of one pixel, got {list(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"{name} takes normalised floating-point images, got {x.dtype}")
        if self.training and x.shape[0] < self.smallest_batch:
            raise ValueError(
                f"{name} trains on {self.smallest_batch} images or more at once, got {x.shape[0]}: its batch "
                "norm sits after global pooling; drop such a batch"
            )


class ZeroConv2d(nn.Conv2d):
    """A convolution that starts as zero, such as one that predicts offsets."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Residual(nn.Module):
    """Two 3x3 convolutions with batch norm, beside a shortcut (He et al., CVPR 2016, arXiv:1512.03385).

    The shortcut is a 1x1 convolution with batch norm where channels or size change. `attention` reweighs the
    convolutions' result before the shortcut is added.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        bias: bool = True,
        attention: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=bias),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=bias),
            nn.BatchNorm2d(out_channels),
        )
        self.attention = attention or nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=bias), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.attention(self.body(x)) + self.shortcut(x))


def residual_stage(in_channels: int, out_channels: int, blocks: int, stride: int = 1) -> nn.Sequential:
    """`blocks` residual blocks without biases; the first changes channels and size."""
    first = Residual(in_channels, out_channels, stride, bias=False)
    return nn.Sequential(
        first, *(Residual(out_channels, out_channels, bias=False) for _ in range(blocks - 1))
    )


def conv_norm_relu(
    in_channels: int,
    out_channels: int,
    kernel: int = 3,
    stride: int = 1,
    bias: bool = False,
    dilation: int = 1,
) -> list[nn.Module]:
    """Convolution that keeps the size (at stride 1), batch norm and ReLU, to be put into a sequence."""
    return [
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2 * dilation, dilation, bias=bias),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]


def quarter_stem(in_channels: int, width: int) -> nn.Sequential:
    """Start of ACM and ISNet: images [B, in_channels, H, W] to maps [B, 2 width, H/4, W/4]."""
    return nn.Sequential(
        nn.BatchNorm2d(in_channels),
        *conv_norm_relu(in_channels, width, stride=2),
        *conv_norm_relu(width, width),
        *conv_norm_relu(width, 2 * width),
        nn.MaxPool2d(3, 2, 1),
    )


def mask_head(channels: int) -> nn.Sequential:
    """End of ACM and ISNet: maps [B, channels, H, W] to logits [B, 1, H, W]."""
    narrow = channels // 4
    return nn.Sequential(*conv_norm_relu(channels, narrow), nn.Dropout(0.1), nn.Conv2d(narrow, 1, 1))


def rescale(x: Tensor, factor: float) -> Tensor:
    """Bilinear resampling of [B, C, H, W] with corners on corners, as DNANet and ResUNet were published."""
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=True)
