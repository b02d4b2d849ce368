"""Trained detectors on disk: weights with everything needed to use them, or to go on training."""

import io
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mclc_gpu.data.files import atomic_path
from mclc_gpu.errors import InputError
from mclc_gpu.networks.blocks import Detector
from mclc_gpu.networks.zoo import build

_KIND = "mclc-gpu detector"
_VERSION = 1
CHANNELS = (1, 3)  # of the networks that are trained
_FIELDS = {
    "network": str,
    "in_channels": int,
    "normalisation": dict,
    "weights": dict,
    "settings": dict,
    "state": dict,
}


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of the training images, in the gray levels (0 to 255) of `gray_levels`."""

    mean: float
    std: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise ValueError(f"mean {self.mean} and standard deviation {self.std} normalise nothing")


@dataclass
class Trained:
    """A detector from a file.

    Attributes:
        network: With its weights, in eval mode, on the device asked for.
        name: Of the network, as in `mclc_gpu.networks.zoo.NETWORKS`.
        in_channels: 1 or 3.
        normalisation: Of its input.
        settings: What it was trained with, as JSON would hold it.
        state: Where training stood: "epoch", "scores", and in a run's last.pt what it needs to go on. Tensors
            are on the CPU.
    """

    network: Detector
    name: str
    in_channels: int
    normalisation: Normalisation
    settings: dict[str, Any]
    state: dict[str, Any]


def save_checkpoint(
    path: Path,
    *,
    network: Detector,
    name: str,
    in_channels: int,
    normalisation: Normalisation,
    settings: dict[str, Any],
    state: dict[str, Any],
) -> None:
    """Write a checkpoint, whole or not at all.

    `settings` and `state`: nested dicts and lists of numbers, texts, None and, in `state`, tensors: what
    torch reads back without running code. Raises OSError when the file cannot be written.
    """
    content = {
        "kind": _KIND,
        "version": _VERSION,
        "network": name,
        "in_channels": in_channels,
        "normalisation": asdict(normalisation),
        "weights": network.state_dict(),
        "settings": settings,
        "state": state,
    }
    # Where it writes to a file itself, torch says of a full disk that it is a bug of its own.
    file = io.BytesIO()
    torch.save(content, file)
    with atomic_path(path) as temporary:
        temporary.write_bytes(file.getbuffer())


def load_checkpoint(path: Path, device: torch.device | str) -> Trained:
    """Read a checkpoint and build its network on a device. No code in the file is run.

    Raises:
        InputError: The file is missing, damaged, no checkpoint of this package, of a newer version of it, or
            of a network that this version does not have or builds with other weights.
    """
    content = _read(path)
    try:
        if content["in_channels"] not in CHANNELS:
            raise ValueError(f"a network of {content['in_channels']} channels")
        with torch.random.fork_rng(devices=[]):  # for weights that are replaced at once
            network = build(content["network"], content["in_channels"])
    except ValueError as error:
        raise InputError(f"{path}: {error}; use the version of mclc-gpu that wrote it") from error
    try:
        network.load_state_dict(content["weights"])
        normalisation = Normalisation(**content["normalisation"])
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: its weights are not those of this version's {content['network']}; "
            "use the version of mclc-gpu that wrote it"
        ) from error
    return Trained(
        network=network.to(device).eval(),
        name=content["network"],
        in_channels=content["in_channels"],
        normalisation=normalisation,
        settings=content["settings"],
        state=content["state"],
    )


def _read(path: Path) -> dict[str, Any]:
    """A checkpoint's content, with every field of its type."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of a checkpoint, such as RUN/best.pt")
    data = io.BytesIO(path.read_bytes())
    try:
        content = torch.load(data, map_location="cpu", weights_only=True)
    # torch raises nearly anything on bytes that are not its own, documented nowhere.
    except Exception as error:
        raise InputError(
            f"{path}: damaged, or not written by mclc-gpu train; give RUN/best.pt or RUN/last.pt"
        ) from error
    if not isinstance(content, dict) or content.get("kind") != _KIND:
        raise InputError(f"{path}: not a checkpoint of mclc-gpu train; give RUN/best.pt or RUN/last.pt")
    if content.get("version") != _VERSION:
        raise InputError(
            f"{path}: checkpoint version {content.get('version')}, this mclc-gpu reads {_VERSION}; "
            "use the version that wrote it"
        )
    wrong = [name for name, kind in _FIELDS.items() if not isinstance(content.get(name), kind)]
    if wrong:
        raise InputError(f"{path}: damaged: {', '.join(wrong)} missing; copy or train it again")
    return content
