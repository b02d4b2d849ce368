"""Open the detector that the options of a command name: a checkpoint's network, or an untrained method."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from mclc_gpu.classical.predictor import MethodPredictor, make_method, sequences
from mclc_gpu.classical.rules import threshold_of
from mclc_gpu.detect.checkpoint import Trained, load_checkpoint
from mclc_gpu.detect.config import THRESHOLD, DetectorOptions, used_threshold
from mclc_gpu.detect.inference import predictor_of
from mclc_gpu.errors import Skipped

Item = TypeVar("Item", bound=Sequence[Any])


class Maps(Protocol):
    """Source of probability maps: `Predictor` or `MethodPredictor`."""

    def stream(self, items: Iterable[tuple[Item, np.ndarray]]) -> Iterator[tuple[Item, np.ndarray | Skipped]]:
        """Yield (item, map) pairs in the order of the input; an item begins with the image's name.

        An image without a result has a `Skipped` instead of a map.
        """


@dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """Detector that is ready to run.

    Attributes
    ----------
    name : str
        Of the network or method.
    maps : Maps
    limit : callable
        Returns the threshold of a map, float32 [H, W].
    settings : dict
        Settings of the run that the output depends on.
    identity : str or dict
        What else it depends on: digest of the checkpoint, or the method with its parameters.
    about : dict
        What identifies the detector, for the summary of a run.
    parameters : dict
        Settings of the training, or parameters of the method.
    trained : Trained or None
        The network, if it was read from a checkpoint.
    groups : dict of str to int
        Images that are not independent: the group of each, by name; empty where all are.
    """

    name: str
    maps: Maps
    limit: Callable[[np.ndarray], float]
    settings: dict[str, Any]
    identity: str | dict[str, Any]
    about: dict[str, Any]
    parameters: dict[str, Any]
    trained: Trained | None = None
    groups: dict[str, int] = field(default_factory=dict)


def open_detector(options: DetectorOptions, device: torch.device, names: Iterable[str]) -> Opened:
    """Open the detector of these options.

    Parameters
    ----------
    options : DetectorOptions
    device : torch.device
    names : iterable of str
        Names of all images, in order.

    Raises
    ------
    InputError
        If the checkpoint cannot be used, or a parameter of the method is unknown or out of range.
    """
    if options.checkpoint is not None:
        return _open_network(options, options.checkpoint, device)
    assert options.method is not None
    untrained, fixed = options.untrained, THRESHOLD if options.threshold is None else options.threshold
    method = make_method(options.method, untrained.parameters)
    parameters = asdict(method)  # type: ignore[call-overload]
    identity = {"name": options.method, "parameters": parameters}
    groups = sequences(names, method.length()) if method.length() > 1 else {}
    return Opened(
        name=options.method,
        maps=MethodPredictor(method, untrained.map_scale, device, groups),
        limit=partial(threshold_of, options=untrained, fixed=fixed),
        settings=options.settings(fixed),
        identity=identity,
        about={"method": identity},
        parameters=parameters,
        groups=groups,
    )


def _open_network(options: DetectorOptions, checkpoint: Path, device: torch.device) -> Opened:
    trained = load_checkpoint(checkpoint, device)
    with checkpoint.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    threshold = used_threshold(options.threshold, trained.threshold)
    file_facts = {"file": str(checkpoint), "sha256": digest, "network": trained.name}
    return Opened(
        name=trained.name,
        maps=predictor_of(trained, options),
        limit=lambda _: threshold.value,
        settings=options.settings(threshold.value),
        identity=digest,
        about={"threshold_from": threshold.source, "checkpoint": file_facts},
        parameters=trained.settings,
        trained=trained,
    )
