"""Protocol of a detector (`Detector`, `Logits`) and blocks that several detectors share."""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Logits(NamedTuple):
    """Output of a detector; a sigmoid turns its values into probabilities.

    Attributes
    ----------
    masks : tuple of Tensor [B, 1, H, W], floating-point
        The detector's mask first; it alone is used for prediction. In training mode the masks of side outputs
        follow, to each of which the loss is applied as well (deep supervision).
    edge : Tensor [B, 1, H, W], floating-point, or None
        Outlines of the targets, from networks with an edge branch in training mode only; None otherwise.
    """

    masks: tuple[Tensor, ...]
    edge: Tensor | None = None


class Detector(nn.Module, ABC):
    """Segmentation network for images of any size; base class of all detectors.

    A subclass takes the number of input channels in its constructor, passes it on, and implements `segment`,
    which maps images whose sides are multiples of `divisor` and at least `smallest_size` to `Logits` of the
    same size. This class does the rest: `forward` checks the input, pads it to such a size, calls `segment`
    and crops its output; `initialize` sets the initial weights. Side outputs and edges are returned while
    ``self.training`` is true, never in evaluation mode.

    Attributes
    ----------
    divisor : int
        Height and width of the input of `segment` are multiples of it.
    smallest_size : int, pixels
        Least height and width of the input of `segment`, a multiple of `divisor`. With batch norm the deepest
        feature map needs more than one pixel, since batch norm cannot train on one value per channel: 2 for a
        network that keeps the size, 32 for one that divides it by 16.
    smallest_batch : int
        Least number of images in training mode: 2 for networks with batch norm after global pooling, where
        each image leaves one value per channel.
    pretrained : str or None
        Network of torchvision whose weights the attribute `backbone` takes; None where there is no backbone.

    Raises
    ------
    ValueError
        If `in_channels` is below 1.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from mclc_gpu.networks.blocks import Detector, Logits
    >>> class Halving(Detector):
    ...     divisor = smallest_size = 2
    ...     def __init__(self, in_channels: int = 1) -> None:
    ...         super().__init__(in_channels)
    ...         self.layers = nn.Sequential(nn.Conv2d(in_channels, 4, 2, 2), nn.PixelShuffle(2))
    ...     def segment(self, x: torch.Tensor) -> Logits:
    ...         return Logits((self.layers(x),))
    >>> Halving()(torch.zeros(3, 1, 5, 7)).masks[0].shape
    torch.Size([3, 1, 5, 7])
    """

    divisor: int = 1
    smallest_size: int = 1
    smallest_batch: int = 1
    pretrained: str | None = None

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        if in_channels < 1:
            raise ValueError(f"in_channels must be 1 or more, got {in_channels}")
        self.in_channels = in_channels

    @abstractmethod
    def segment(self, x: Tensor) -> Logits:
        """Return the logits of images [B, in_channels, H, W] of a size that the network takes."""

    def forward(self, x: Tensor) -> Logits:
        """Return the logits of images of any size from 1x1.

        Images are padded at the right and bottom by repeating their border, never resized.

        Parameters
        ----------
        x : Tensor [B, in_channels, H, W], floating-point
            Images, normalized to a mean near 0 and a standard deviation near 1.

        Returns
        -------
        Logits
            Of the images' own height and width.

        Raises
        ------
        ValueError
            If shape, number of channels or dtype is wrong, or, in training mode, there are fewer than
            `smallest_batch` images.
        """
        self._check(x)
        height, width = x.shape[-2:]
        bottom, right = self._padding(height), self._padding(width)
        masks, edge = self.segment(F.pad(x, (0, right, 0, bottom), mode="replicate"))
        cropped = tuple(mask[..., :height, :width] for mask in masks)
        return Logits(cropped, None if edge is None else edge[..., :height, :width])

    def initialize(self) -> None:
        """Set all parameters and statistics to their initial values.

        Weights of convolutions and linear layers are drawn from the Xavier normal distribution (Glorot &
        Bengio, AISTATS 2010, https://proceedings.mlr.press/v9/glorot10a.html) with torch's global generator;
        biases are 0. Batch norm and layer norm start as the identity, a `ZeroConv2d` as zero.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                nn.init.xavier_normal_(module.weight, _gain(module))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            if isinstance(module, nn.BatchNorm2d | nn.LayerNorm | ZeroConv2d):
                module.reset_parameters()

    def set_prior(self, logit: float) -> None:
        """Let the masks of an initialized network start near a logit, that of the rarity of targets.

        Sets the biases of `mask_layers`.
        """
        for layer in self.mask_layers():
            if layer.bias is not None:
                nn.init.constant_(layer.bias, logit)

    def mask_layers(self) -> list[nn.Conv2d]:
        """Return the convolutions that make the logits of the masks; by default the last convolution."""
        return [module for module in self.modules() if isinstance(module, nn.Conv2d)][-1:]

    def _padding(self, size: int) -> int:
        """Return the pixels by which a side is padded to one that the network takes."""
        # No floor division of a negative number, which ONNX rounds towards zero.
        multiple = (size + self.divisor - 1) // self.divisor * self.divisor
        return max(multiple, self.smallest_size) - size

    def _check(self, x: Tensor) -> None:
        """Raise ValueError for input that `forward` cannot take."""
        name = type(self).__name__
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"{name} takes images [B, {self.in_channels}, H, W], got {list(x.shape)}")
        if x.numel() == 0:
            raise ValueError(f"{name} needs at least one image of one pixel, got {list(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"{name} takes normalized floating-point images, got {x.dtype}")
        if self.training and x.shape[0] < self.smallest_batch:
            raise ValueError(
                f"{name} trains on batches of {self.smallest_batch} images or more, got {x.shape[0]}: "
                "its batch norm follows global pooling; drop smaller batches"
            )


def _gain(layer: nn.Module) -> float:
    """Return the factor by which the weights of grouped convolutions are larger than torch draws them.

    Torch takes all output channels for those that an input channel feeds; in a group it feeds fewer.
    """
    if not isinstance(layer, nn.Conv1d | nn.Conv2d):
        return 1.0
    outer, inner = layer.weight.shape[:2]
    return math.sqrt((outer + inner) / (outer / layer.groups + inner))


def set_fusion_prior(fusion: nn.Conv2d, logit: float) -> None:
    """Let the fusion of masks that start near a logit start near it, too."""
    assert fusion.bias is not None
    nn.init.constant_(fusion.bias, logit * (1 - fusion.weight.sum().item()))


class ZeroConv2d(nn.Conv2d):
    """Convolution whose weights start as zero, such as one that predicts offsets."""

    def reset_parameters(self) -> None:
        """Set weights and bias to zero."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class PooledBatchNorm2d(nn.BatchNorm2d):
    """Batch norm behind a global pooling, where each image of a batch leaves one value per channel.

    The statistics of a small batch are those of few values: from one batch to the next they differ more than
    the features do, and in evaluation mode the network is another one than it was in training. Training with
    small batches therefore ends with these layers in evaluation mode, on their running statistics.
    """


class Residual(nn.Module):
    """Residual block of two 3x3 convolutions with batch norm.

    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, doi:10.1109/CVPR.2016.90,
    arXiv:1512.03385. The shortcut is a 1x1 convolution with batch norm where channels or size change.

    Parameters
    ----------
    in_channels, out_channels : int
    stride : int
        Stride of the first convolution and of the shortcut.
    bias : bool
        Whether the convolutions have biases.
    attention : nn.Module, optional
        Reweights the result [B, out_channels, H, W] of the convolutions before the shortcut is added.
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
        """Map features [B, in_channels, H, W] to [B, out_channels, H / stride, W / stride]."""
        return F.relu(self.attention(self.body(x)) + self.shortcut(x))


class BlockAttention(nn.Module):
    """Channel attention, then spatial attention.

    Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018, doi:10.1007/978-3-030-01234-2_1,
    arXiv:1807.06521.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = channels // 16
        self.squeeze = nn.Conv2d(channels, narrow, 1, bias=False)
        self.widen = nn.Conv2d(narrow, channels, 1, bias=False)
        self.where = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Reweight features [B, channels, H, W]."""
        mean, peak = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        channel = self.widen(F.relu(self.squeeze(mean))) + self.widen(F.relu(self.squeeze(peak)))
        x = x * torch.sigmoid(channel)
        pixel = self.where(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1))
        return x * torch.sigmoid(pixel)


def attentive(in_channels: int, out_channels: int) -> Residual:
    """Build the residual block with attention of DNANet and MSHNet."""
    return Residual(in_channels, out_channels, attention=BlockAttention(out_channels))


def residual_stage(in_channels: int, out_channels: int, blocks: int, stride: int = 1) -> nn.Sequential:
    """Build a stage of residual blocks without biases, the first of which changes channels and size."""
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
    norm: type[nn.BatchNorm2d] = nn.BatchNorm2d,
) -> list[nn.Module]:
    """Build a convolution that keeps the size at stride 1, batch norm and ReLU, for use in a sequence."""
    return [
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2 * dilation, dilation, bias=bias),
        norm(out_channels),
        nn.ReLU(inplace=True),
    ]


def quarter_stem(in_channels: int, width: int) -> nn.Sequential:
    """Build the stem of ACM and ISNet: images [B, in_channels, H, W] to features [B, 2 width, H/4, W/4]."""
    return nn.Sequential(
        nn.BatchNorm2d(in_channels),
        *conv_norm_relu(in_channels, width, stride=2),
        *conv_norm_relu(width, width),
        *conv_norm_relu(width, 2 * width),
        nn.MaxPool2d(3, 2, 1),
    )


def mask_head(channels: int) -> nn.Sequential:
    """Build the head of ACM and ISNet: features [B, channels, H, W] to logits [B, 1, H, W]."""
    narrow = channels // 4
    return nn.Sequential(*conv_norm_relu(channels, narrow), nn.Dropout(0.1), nn.Conv2d(narrow, 1, 1))


def rescale(x: Tensor, factor: float) -> Tensor:
    """Resample features [B, C, H, W] bilinearly, corner aligned, as DNANet and ResUNet were published."""
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=True)
