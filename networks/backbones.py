"""Backbones with the layout of torchvision's VGG-16 and ResNet-50, so that they take its weights."""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mclc_gpu.errors import InputError
from mclc_gpu.networks.blocks import Detector

_VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_RESNET50 = ((64, 3), (128, 4), (256, 6), (512, 3))  # inner channels and blocks of each stage


class Backbone(nn.Module):
    """Encoder that a network for color photographs was pretrained with.

    Its parameters have the names of torchvision's state dict. `first_name` is the name of the weights of its
    first convolution.
    """

    first_name: str

    def fitting(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state dict of this backbone with the weights of one of torchvision.

        A classifier in it is left out. Where this backbone takes one channel and the weights are for three,
        those of the first convolution are summed over the channels. A gray image then gives what its three
        equal channels would give.

        Parameters
        ----------
        state : mapping of str to Tensor

        Raises
        ------
        ValueError
            If a tensor is missing or has another shape.
        """
        chosen: dict[str, Tensor] = {}
        for name, own in self.state_dict().items():
            # A count that older state dicts lack; it does not enter any result.
            if name.endswith("num_batches_tracked") and name not in state:
                chosen[name] = own
                continue
            found = state.get(name)
            if not isinstance(found, Tensor):
                raise ValueError(f"holds no {name}")
            if name == self.first_name and own.shape[1] == 1 and found.dim() == 4:
                found = found.sum(1, keepdim=True)
            if found.shape != own.shape:
                raise ValueError(f"{name} is {list(found.shape)}, not {list(own.shape)}")
            chosen[name] = found
        return chosen


class VGG16(Backbone):
    """Thirteen 3x3 convolutions of VGG-16 in five stages, of which the last four begin with a max pooling.

    Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015,
    arXiv:1409.1556. In training mode a share `dropout` of the values is dropped after each pooling and at
    the end.
    """

    first_name = "features.0.weight"

    def __init__(self, in_channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.ends: list[int] = []  # layers after which a stage ends
        channels = in_channels
        for stage in _VGG16:
            for width in stage:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2))
            self.ends.append(len(layers) - 1)
        self.features = nn.Sequential(*layers[:-1])
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map images [B, in_channels, H, W] to the features of the stages: 64 to 512 channels, H to H/16."""
        stages = []
        for number, layer in enumerate(self.features):
            if number in self.ends:
                stages.append(x)
                x = self.dropout(layer(x))
            else:
                x = layer(x)
        return [*stages, self.dropout(x)]


class ResNet50(Backbone):
    """ResNet-50 without its classifier.

    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, doi:10.1109/CVPR.2016.90,
    arXiv:1512.03385; the stride of a block is that of its 3x3 convolution.
    """

    first_name = "conv1.weight"

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for number, (inner, blocks) in enumerate(_RESNET50, 1):
            stage = [Bottleneck(channels, inner, 1 if number == 1 else 2)]
            channels = 4 * inner
            stage += [Bottleneck(channels, inner) for _ in range(blocks - 1)]
            setattr(self, f"layer{number}", nn.Sequential(*stage))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map images [B, in_channels, H, W] to the stages' features: 256 to 2048 channels, H/4 to H/32."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        stages = []
        for number in range(1, len(_RESNET50) + 1):
            x = getattr(self, f"layer{number}")(x)
            stages.append(x)
        return stages


class Bottleneck(nn.Module):
    """Residual block of a 1x1, a 3x3 and a 1x1 convolution, with the names of torchvision."""

    def __init__(self, in_channels: int, inner: int, stride: int = 1) -> None:
        super().__init__()
        outer = 4 * inner
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outer, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outer)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != outer:
            shortcut = nn.Conv2d(in_channels, outer, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        """Map features [B, in_channels, H, W] to [B, 4 inner, H / stride, W / stride]."""
        inner = F.relu(self.bn1(self.conv1(x)))
        inner = F.relu(self.bn2(self.conv2(inner)))
        return F.relu(self.bn3(self.conv3(inner)) + self.downsample(x))


def read_backbone(detector: Detector, path: Path) -> dict[str, Tensor]:
    """Read weights for the backbone of a detector from a file of torchvision. No code in the file is run.

    Parameters
    ----------
    detector : Detector
        With a `Backbone` as its attribute `backbone`.
    path : Path
        State dict of the network that `detector.pretrained` names, as torchvision's download or
        ``torch.save(model.state_dict(), path)`` writes it.

    Returns
    -------
    dict of str to Tensor
        Part of the detector's state dict: that of its backbone, with "backbone." before each name.

    Raises
    ------
    InputError
        If the detector has no backbone, or the file is missing, damaged, or of another network.
    """
    backbone = getattr(detector, "backbone", None)
    if not isinstance(backbone, Backbone):
        raise InputError(
            f"{path}: {type(detector).__name__} has no backbone that takes weights; leave it out"
        )
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a state dict of torchvision's {detector.pretrained}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, Mapping):
            raise TypeError
    # torch raises nearly any error on bytes that are not its own, none of them documented.
    except Exception as error:
        raise InputError(f"{path}: damaged, or no state dict; save one with torch.save") from error
    try:
        chosen = backbone.fitting(state)
    except ValueError as error:
        kind = detector.pretrained
        raise InputError(f"{path}: {error}; give the state dict of torchvision's {kind}") from error
    return {f"backbone.{name}": value for name, value in chosen.items()}
