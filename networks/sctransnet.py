"""SCTransNet: a U-Net whose skip connections are mixed by transformer blocks that attend across channels.

Yuan, Qin, Yan, Akhtar & Mian, "SCTransNet: Spatial-Channel Cross Transformer Network for Infrared Small
Target Detection", IEEE Transactions on Geoscience and Remote Sensing 62, 2024,
doi:10.1109/TGRS.2024.3383649, arXiv:2401.15583.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mclc_gpu.networks.blocks import Detector, Logits, Residual, conv_norm_relu, rescale, set_fusion_prior

_FILTERS = (32, 64, 128, 256)
_PATCHES = (16, 8, 4, 2)  # pixels of each level that become one token, 16 of the image at every level
_BLOCKS = 4


class SCTransNet(Detector):
    """SCTransNet with five levels of 32 to 256 channels and four spatial-channel cross transformer blocks.

    11,202,995 parameters for one channel, 11,203,635 for three; 10.5 G multiply-adds for 256x256. The
    published code holds 122,944 more, which its forward pass never uses: position embeddings for images of
    256x256, and scalars. Tokens have no position, and attention is between channels, so that time and memory
    grow with the number of pixels, at any image size.

    The mask is the prediction of the finest level. In training mode five side outputs follow it: the fusion
    of all levels' predictions, and those of the second to the fifth level. Published training: the sum of
    binary cross-entropies of all six.
    """

    divisor = 16
    smallest_size = 32

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__(in_channels)
        filters = (*_FILTERS, _FILTERS[-1])
        self.down = nn.ModuleList(
            LeakyResidual(above, own) for above, own in zip((in_channels, *filters), filters, strict=False)
        )
        self.transformer = CrossTransformer()
        ends = (_FILTERS[0], *_FILTERS[:-1])  # channels of the decoder's levels
        self.up = nn.ModuleList(GatedUp(own, end) for own, end in zip(_FILTERS, ends, strict=True))
        self.head = nn.Conv2d(_FILTERS[0], 1, 1)
        self.side_heads = nn.ModuleList(nn.Conv2d(own, 1, 1) for own in (*ends[1:], _FILTERS[-1]))
        self.fusion = nn.Conv2d(len(filters), 1, 1)

    def segment(self, x: Tensor) -> Logits:
        """Return the logits; see `Detector`."""
        levels: list[Tensor] = []
        for stage in self.down:
            levels.append(stage(F.max_pool2d(levels[-1], 2) if levels else x))
        maps = [levels.pop()]
        mixed = self.transformer(levels)
        for stage, own, mix in zip(reversed(self.up), reversed(levels), reversed(mixed), strict=True):
            maps.insert(0, stage(maps[0], mix + 2 * own))
        mask = self.head(maps[0])
        if not self.training:
            return Logits((mask,))
        pairs = enumerate(zip(self.side_heads, maps[1:], strict=True), start=1)
        sides = [rescale(head(features), 2**level) for level, (head, features) in pairs]
        return Logits((mask, self.fusion(torch.cat([*sides, mask], 1)), *sides))

    def mask_layers(self) -> list[nn.Conv2d]:
        """Return the heads of all levels."""
        return [self.head, *(head for head in self.side_heads if isinstance(head, nn.Conv2d))]

    def set_prior(self, logit: float) -> None:
        """Let the masks start near a logit; see `Detector`."""
        super().set_prior(logit)
        set_fusion_prior(self.fusion, logit)


class LeakyResidual(Residual):
    """Residual block with leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self.body[2] = nn.LeakyReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map features [B, in_channels, H, W] to [B, out_channels, H, W]."""
        return F.leaky_relu(self.body(x) + self.shortcut(x))


class GatedUp(nn.Module):
    """Step of the decoder: deep features, doubled in size, beside skipped ones with weighted channels.

    The weights follow from the means of both: the channel-wise cross attention of UCTransNet (Wang, Cao, Wang
    & Zaiane, AAAI 2022, doi:10.1609/aaai.v36i3.20144).
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.of_skipped = nn.Linear(channels, channels)
        self.of_deep = nn.Linear(channels, channels)
        self.join = nn.Sequential(
            *conv_norm_relu(2 * channels, out_channels, bias=True),
            *conv_norm_relu(out_channels, out_channels, bias=True),
        )

    def forward(self, deep: Tensor, skipped: Tensor) -> Tensor:
        """Map features [B, channels, H/2, W/2] and [B, channels, H, W] to [B, out_channels, H, W]."""
        weights = (self.of_skipped(skipped.mean((2, 3))) + self.of_deep(deep.mean((2, 3)))) / 2
        weighted = F.relu(skipped * torch.sigmoid(weights)[:, :, None, None])
        joined: Tensor = self.join(torch.cat([weighted, F.interpolate(deep, scale_factor=2.0)], 1))
        return joined


class CrossTransformer(nn.Module):
    """Transformer over the tokens of all levels: features of each level in, features to add to it out."""

    def __init__(self) -> None:
        super().__init__()
        pairs = list(zip(_FILTERS, _PATCHES, strict=True))
        self.embed = nn.ModuleList(nn.Conv2d(own, own, patch, patch) for own, patch in pairs)
        self.blocks = nn.ModuleList(CrossBlock() for _ in range(_BLOCKS))
        self.norms = nn.ModuleList(ChannelNorm(own) for own in _FILTERS)
        self.expand = nn.ModuleList(
            nn.Sequential(
                nn.Upsample(scale_factor=patch, mode="bilinear"),
                *conv_norm_relu(own, own, kernel=1, bias=True),
            )
            for own, patch in pairs
        )

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Map features [B, 32 2^i, H / 2^i, W / 2^i] of levels i = 0..3 to features of these shapes."""
        tokens = _each(self.embed, levels)
        for block in self.blocks:
            tokens = block(tokens)
        return _each(self.expand, _each(self.norms, tokens))


class CrossBlock(nn.Module):
    """Spatial-channel cross transformer block: attention across the channels of all levels, then mixing."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(ChannelNorm(own) for own in _FILTERS)
        self.norm_all = ChannelNorm(sum(_FILTERS))
        self.attention = ChannelAttention()
        self.mix = nn.ModuleList(nn.Sequential(ChannelNorm(own), FeedForward(own)) for own in _FILTERS)

    def forward(self, tokens: list[Tensor]) -> list[Tensor]:
        """Map the tokens of all levels, each [B, channels, H/16, W/16], to tokens of the same shapes."""
        found = self.attention(_each(self.norms, tokens), self.norm_all(torch.cat(tokens, 1)))
        tokens = [own + more for own, more in zip(tokens, found, strict=True)]
        return [own + more for own, more in zip(tokens, _each(self.mix, tokens), strict=True)]


class ChannelAttention(nn.Module):
    """Spatial-embedded single-head channel-cross attention.

    Queries are the channels of one level, keys and values those of all levels together. 3x3 convolutions
    make them from their neighborhoods first. Similarities are cosines over all tokens, instance normalized.
    """

    def __init__(self) -> None:
        super().__init__()
        every = sum(_FILTERS)
        self.queries = nn.ModuleList(_projected(own, own // 2) for own in _FILTERS)
        self.keys, self.values = _projected(every, every), _projected(every, every)
        self.out = nn.ModuleList(nn.Conv2d(own, own, 1, bias=False) for own in _FILTERS)

    def forward(self, tokens: list[Tensor], every: Tensor) -> list[Tensor]:
        """Attend from the tokens of each level to those of all levels [B, 480, H/16, W/16]."""
        keys = F.normalize(self.keys(every).flatten(2), dim=2).transpose(1, 2)
        values = self.values(every).flatten(2)
        found = []
        for query, out, own in zip(self.queries, self.out, tokens, strict=True):
            alike = F.normalize(query(own).flatten(2), dim=2) @ keys / math.sqrt(every.shape[1])
            weights = F.instance_norm(alike.unsqueeze(1)).squeeze(1).softmax(2)  # [B, channels, 480]
            found.append(out((weights @ values).view_as(own)))
        return found


class FeedForward(nn.Module):
    """Complementary feed-forward network: two sizes of neighborhood, then weights for the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = int(2.66 * channels)
        self.widen = nn.Conv2d(channels, 2 * inner, 1, bias=False)
        self.near = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.far = nn.Conv2d(inner, inner, 5, padding=2, groups=inner, bias=False)
        self.narrow = nn.Conv2d(2 * inner, channels, 1, bias=False)
        self.weights = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [B, channels, H, W] to tokens of the same shape."""
        near, far = self.widen(x).chunk(2, 1)
        x = self.narrow(torch.cat([F.relu(self.near(near)), F.relu(self.far(far))], 1))
        weights = self.weights(x.mean((2, 3)).unsqueeze(1)).squeeze(1)
        return x * torch.sigmoid(weights)[:, :, None, None]


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel of features [B, channels, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize features [B, channels, H, W]."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _projected(channels: int, groups: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False),
    )


def _each(layers: nn.ModuleList, inputs: Sequence[Tensor]) -> list[Tensor]:
    return [layer(x) for layer, x in zip(layers, inputs, strict=True)]
