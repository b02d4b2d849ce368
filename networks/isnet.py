"""ISNet: a detector that also predicts the outlines of the targets and weights its features with them.

Zhang, Zhang, Yang, Bai, Zhang & Guo, "ISNet: Shape Matters for Infrared Small Target Detection", CVPR 2022,
doi:10.1109/CVPR52688.2022.00095.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mclc_gpu.networks.blocks import (
    Detector,
    Logits,
    ZeroConv2d,
    conv_norm_relu,
    mask_head,
    quarter_stem,
    residual_stage,
)


def gradient_magnitude(images: Tensor) -> Tensor:
    """Compute the length of the gradient by central differences (not halved), channel by channel.

    The gradient of an image is the input of the edge branch. The gradient of a mask is the published edge
    target: 1 on the two pixels either side of a straight outline, sqrt(2) at corners, 0.001 elsewhere. The
    border is repeated outwards, so that the end of the image is no edge.

    Parameters
    ----------
    images : Tensor [B, C, H, W], floating-point

    Returns
    -------
    Tensor [B, C, H, W]
        Same dtype, at least 0.001, so that the derivative of the root stays finite.
    """
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    right = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    return (down.square() + right.square() + 1e-6).sqrt()


def deformable_conv2d(
    x: Tensor, offsets: Tensor, modulation: Tensor | None, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Convolve with taps that are moved by `offsets` and weighted by `modulation`, pixel by pixel.

    Zhu, Hu, Lin & Dai, "Deformable ConvNets v2: More Deformable, Better Results", CVPR 2019,
    doi:10.1109/CVPR.2019.00953, arXiv:1811.11168. Samples are bilinear; positions outside the map count as 0.
    All taps are read by one `grid_sample`, in float32 at least, since bfloat16 cannot distinguish neighboring
    pixels beyond the 256th. Memory is that of `x` times the number of taps.

    Parameters
    ----------
    x : Tensor [B, C, H, W], floating-point
    offsets : Tensor [B, 2 T, H, W], pixels
        Channels 2t and 2t + 1 move tap t, counted row by row, down and right.
    modulation : Tensor [B, T, H, W] or None
        Weight of each sample; None is a weight of 1 (v1 of the paper).
    weight : Tensor [O, C, KH, KW]
        Odd KH and KW, T = KH KW taps.
    bias : Tensor [O], optional

    Returns
    -------
    Tensor [B, O, H, W]
        With zero offsets and without modulation equal to `conv2d` with "same" zero padding.

    Examples
    --------
    >>> import torch
    >>> from mclc_gpu.networks.isnet import deformable_conv2d
    >>> x = torch.arange(4.0).view(1, 1, 1, 4)
    >>> right = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).expand(1, 2, 1, 4)
    >>> deformable_conv2d(x, right, None, torch.ones(1, 1, 1, 1)).flatten().tolist()
    [1.0, 2.0, 3.0, 0.0]
    """
    batch, channels, height, width = x.shape
    rows, columns = weight.shape[2:]
    taps = rows * columns
    dtype = torch.promote_types(x.dtype, torch.float32)
    moved = offsets.to(dtype).unflatten(1, (rows, columns, 2))

    def steps(count: int) -> Tensor:
        return torch.arange(count, device=x.device, dtype=dtype)

    down = (steps(rows) - rows // 2)[:, None, None, None] + steps(height)[:, None] + moved[:, :, :, 0]
    right = (steps(columns) - columns // 2)[:, None, None] + steps(width) + moved[:, :, :, 1]
    # The coordinates of grid_sample run from -1 to 1 between the outer sides of the outer pixels.
    grid = torch.stack(((2 * right + 1) / width - 1, (2 * down + 1) / height - 1), dim=-1)
    samples = F.grid_sample(x.to(dtype), grid.view(batch, taps * height, width, 2), align_corners=False)
    samples = samples.to(x.dtype).view(batch, channels, taps, height, width)
    if modulation is not None:
        samples = samples * modulation.unsqueeze(1)
    return F.conv2d(samples.flatten(1, 2), weight.reshape(weight.shape[0], -1, 1, 1), bias)


class DeformableConv2d(nn.Conv2d):
    """Modulated deformable convolution that keeps the size.

    Offsets and modulation are predicted from its input. The prediction starts as zero: samples stay in place
    and have a weight of 1/2.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: tuple[int, int]) -> None:
        padding = (kernel_size[0] // 2, kernel_size[1] // 2)
        super().__init__(in_channels, out_channels, kernel_size, padding=padding)
        self.taps = kernel_size[0] * kernel_size[1]
        self.motion = ZeroConv2d(in_channels, 3 * self.taps, kernel_size, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """Map features [B, in_channels, H, W] to [B, out_channels, H, W]."""
        offsets, modulation = self.motion(x).split((2 * self.taps, self.taps), dim=1)
        return deformable_conv2d(x, offsets, modulation.sigmoid(), self.weight, self.bias)


class OrientedAggregation(nn.Module):
    """Two-orientation attention aggregation: deep features weight skipped ones along columns and rows."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.prepare = nn.Sequential(
            nn.Conv2d(channels, channels // 2, 1), nn.Conv2d(channels // 2, channels, 1)
        )
        self.column = DeformableConv2d(channels, channels, (3, 1))
        self.row = DeformableConv2d(channels, channels, (1, 3))

    def forward(self, deep: Tensor, skipped: Tensor) -> Tensor:
        """Fuse two maps [B, channels, H, W] into one."""
        deep, skipped = self.prepare(deep), self.prepare(skipped)
        return 2 * deep + (self.column(deep).sigmoid() + self.row(deep).sigmoid()) * skipped


class Gate(nn.Module):
    """Gated convolution: features weighted by 1 to 2 per pixel, then mixed across channels.

    The weight depends on the features and on a cue. Takikawa, Acuna, Jampani & Fidler, "Gated-SCNN: Gated
    Shape CNNs for Semantic Segmentation", ICCV 2019, doi:10.1109/ICCV.2019.00533, arXiv:1907.05740.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(
            nn.BatchNorm2d(channels + 1),
            nn.Conv2d(channels + 1, channels + 1, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels + 1, 1, 1),
            nn.BatchNorm2d(1),
            nn.Sigmoid(),
        )
        self.mix = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor, cue: Tensor) -> Tensor:
        """Gate features [B, channels, H, W] by themselves and a cue [B, 1, H, W]."""
        attention = self.attention(torch.cat((x, cue), dim=1))
        return self.mix(x * (1 + attention))


class EdgeBlock(nn.Module):
    """Taylor finite difference block: a third step u3 from the differences of the first two.

    With the residual functions D1 and D2, u1 = relu(u0 + D1(u0)) and u2 = relu(D2(u1)):
    u3 = 3 relu(D1(u0)) + u2 + gate(u2, cue).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = self._difference(channels), self._difference(channels)
        self.gate = Gate(channels)

    @staticmethod
    def _difference(channels: int) -> nn.Sequential:
        return nn.Sequential(
            *conv_norm_relu(channels, channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor, cue: Tensor) -> Tensor:
        """Map edge features [B, channels, H, W] and a cue [B, 1, H, W] to edge features."""
        difference = self.first(x)
        step = F.relu(self.second(F.relu(x + difference)))
        return 3 * F.relu(difference) + step + self.gate(step, cue)


class ISNet(Detector):
    """ISNet with four residual blocks per stage, 8 to 64 channels, and modulated deformable convolutions.

    986,686 parameters for one channel, 986,962 for three; 31.1 G multiply-adds for 256x256. The published
    code holds a tenth more parameters, which its forward pass never uses.

    The body is that of ACM: a quarter-size stem, three stages and a decoder of two. The edge branch runs at
    full resolution on the gradient of the image, with a cue from each of the three decoder levels; the
    sigmoid of its logits weights the features from which the mask is predicted. In training mode
    `Logits.edge` holds these logits.

    Published training: the sum of the mask's soft-IoU loss and, against the `gradient_magnitude` of the mask,
    of the edge's soft-IoU loss and ten times its binary cross-entropy.

    Two details differ from the published code. Borders are repeated before gradients are taken; zeros would
    draw a frame. Cues are enlarged with aligned pixel centers, like the features of the decoder; aligned
    corners move them near the border by up to half a pixel of their own size, 8 pixels of the image.
    """

    divisor = 16
    smallest_size = 32

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__(in_channels)
        self.stem = quarter_stem(in_channels, 8)
        self.shallow = residual_stage(16, 16, blocks=4)
        self.middle = residual_stage(16, 32, blocks=4, stride=2)
        self.deep = residual_stage(32, 64, blocks=4, stride=2)
        self.deep_up = nn.ConvTranspose2d(64, 32, 4, 2, 1)
        self.middle_fusion = OrientedAggregation(32)
        self.middle_decoder = residual_stage(32, 32, blocks=4)
        self.middle_up = nn.ConvTranspose2d(32, 16, 4, 2, 1)
        self.shallow_fusion = OrientedAggregation(16)
        self.shallow_decoder = residual_stage(16, 16, blocks=4)
        self.head = mask_head(16)
        self.edge_start = nn.Conv2d(in_channels, 64, 1)
        self.cues = nn.ModuleList(nn.Conv2d(channels, 1, 1) for channels in (64, 32, 16))
        self.edge_blocks = nn.ModuleList(EdgeBlock(64) for _ in range(3))
        self.edge_head = nn.Conv2d(64, 1, 1, bias=False)

    def segment(self, x: Tensor) -> Logits:
        """Return the logits; see `Detector`."""
        shallow = self.shallow(self.stem(x))
        middle = self.middle(shallow)
        deep = self.deep(middle)
        middle = self.middle_decoder(self.middle_fusion(self.deep_up(deep), middle))
        shallow = self.shallow_decoder(self.shallow_fusion(self.middle_up(middle), shallow))

        edge = self.edge_start(gradient_magnitude(x))
        for block, cue, features in zip(self.edge_blocks, self.cues, (deep, middle, shallow), strict=True):
            edge = block(edge, self._enlarge(cue(features), x))
        edge = self.edge_head(edge)
        mask = self.head(self._enlarge(shallow, x) * (1 + edge.sigmoid()))
        return Logits((mask,), edge if self.training else None)

    def mask_layers(self) -> list[nn.Conv2d]:
        """Return the last convolution of the head; the edge has another prior."""
        return [module for module in self.head if isinstance(module, nn.Conv2d)][-1:]

    @staticmethod
    def _enlarge(features: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(features, size=like.shape[-2:], mode="bilinear", align_corners=False)
