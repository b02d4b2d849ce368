"""Checkpoints: weights of a detector with everything needed to run it or to continue its training."""

import io
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mclc_gpu.data.files import atomic_path
from mclc_gpu.detect.config import CHANNELS, check_threshold
from mclc_gpu.errors import InputError
from mclc_gpu.networks.blocks import Detector
from mclc_gpu.networks.zoo import build

_KIND = "mclc-gpu detector"
_VERSION = 1
_NORMALIZATION = "normalisation"  # its name in the files, spelled as in the first version
_FIELDS = {
    "network": str,
    "in_channels": int,
    _NORMALIZATION: dict,
    "weights": dict,
    "settings": dict,
    "state": dict,
}
_THRESHOLD = "threshold"  # not in files of versions that did not calibrate one, which read those that have it


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of the training images, in the gray levels (0 to 255) of `network_levels`.

    `robust` is that function's; files of versions that did not know it have False.

    Raises
    ------
    ValueError
        If the mean is not finite or the standard deviation is not positive and finite.
    """

    mean: float
    std: float
    robust: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise ValueError(f"mean {self.mean}, standard deviation {self.std}: cannot normalize by these")


@dataclass
class Trained:
    """Detector that was read from a checkpoint.

    Attributes
    ----------
    network : Detector
        With its weights, in evaluation mode, on the device that was asked for.
    name : str
        Name of the network in `mclc_gpu.networks.zoo.NETWORKS`.
    in_channels : {1, 3}
    normalization : Normalization
        Normalization of the input.
    settings : dict
        Settings of the training, as JSON would hold them.
    state : dict
        State of the training: "epoch", "scores", and in a run's last.pt what resuming needs. Tensors are on
        the CPU.
    threshold : float, 0..1, or None
        Threshold of the target probability, calibrated on images held out of the training (see
        `mclc_gpu.detect.calibrate`); None where there is none.
    """

    network: Detector
    name: str
    in_channels: int
    normalization: Normalization
    settings: dict[str, Any]
    state: dict[str, Any]
    threshold: float | None = None


def save_checkpoint(
    path: Path,
    *,
    network: Detector,
    name: str,
    in_channels: int,
    normalization: Normalization,
    settings: dict[str, Any],
    state: dict[str, Any],
    threshold: float | None = None,
) -> None:
    """Write a checkpoint atomically.

    Parameters
    ----------
    path : Path
    network : Detector
    name : str
        Name of the network in `mclc_gpu.networks.zoo.NETWORKS`.
    in_channels : {1, 3}
    normalization : Normalization
    settings, state : dict
        Nested dicts and lists of numbers, texts, None and, in `state`, tensors, which torch reads back
        without running code.
    threshold : float, 0..1, optional
        Calibrated threshold of the target probability.

    Raises
    ------
    ValueError
        If the threshold is out of range.
    OSError
        If the file cannot be written.
    """
    check_threshold(threshold)
    content = {
        "kind": _KIND,
        "version": _VERSION,
        "network": name,
        "in_channels": in_channels,
        _NORMALIZATION: asdict(normalization),
        "weights": network.state_dict(),
        "settings": settings,
        "state": state,
        _THRESHOLD: threshold,
    }
    # torch.save reports a full disk as an internal error when it writes to the file itself.
    file = io.BytesIO()
    torch.save(content, file)
    with atomic_path(path) as temporary:
        temporary.write_bytes(file.getbuffer())


def load_checkpoint(path: Path, device: torch.device | str) -> Trained:
    """Read a checkpoint and build its network on a device. No code in the file is run.

    Parameters
    ----------
    path : Path
    device : torch.device or str

    Raises
    ------
    InputError
        If the file is missing or damaged, is no checkpoint of this package or one of a newer version, or its
        network is not registered here or has other weights.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from mclc_gpu.detect.checkpoint import Normalization, load_checkpoint, save_checkpoint
    >>> from mclc_gpu.networks.zoo import build
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "acm.pt")
    ...     save_checkpoint(
    ...         path, network=build("acm"), name="acm", in_channels=1, settings={}, state={},
    ...         normalization=Normalization(80.0, 20.0),
    ...     )
    ...     trained = load_checkpoint(path, "cpu")
    >>> trained.name, trained.normalization
    ('acm', Normalization(mean=80.0, std=20.0, robust=True))
    """
    content = _read(path)
    try:
        if content["in_channels"] not in CHANNELS:
            raise ValueError(f"a network of {content['in_channels']} input channels")
        with torch.random.fork_rng(devices=[]):  # for initial weights, which are replaced at once
            network = build(content["network"], content["in_channels"])
    except ValueError as error:
        raise InputError(f"{path}: {error}; use the version of mclc-gpu that wrote it") from error
    try:
        network.load_state_dict(content["weights"])
        normalization = Normalization(**{"robust": False, **content[_NORMALIZATION]})
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: its weights are not those of this version's {content['network']}; "
            "use the version of mclc-gpu that wrote it"
        ) from error
    return Trained(
        network=network.to(device).eval(),
        name=content["network"],
        in_channels=content["in_channels"],
        normalization=normalization,
        settings=content["settings"],
        state=content["state"],
        threshold=content.get(_THRESHOLD),
    )


def _read(path: Path) -> dict[str, Any]:
    """Read the content of a checkpoint and check the type of every field."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of a checkpoint, such as RUN/best.pt")
    data = io.BytesIO(path.read_bytes())
    try:
        content = torch.load(data, map_location="cpu", weights_only=True)
    # torch raises nearly any error on bytes that are not its own, none of them documented.
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
    try:
        check_threshold(content.get(_THRESHOLD))
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: damaged: {error}; copy or train it again") from error
    return content
