"""Run an untrained detector on images of any size and type: gray levels, batches, sequences, scaled maps."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import groupby
from typing import Any, TypeVar, get_type_hints

import numpy as np
import torch

from mclc_gpu.classical.config import METHODS
from mclc_gpu.classical.method import Method
from mclc_gpu.data.images import network_levels
from mclc_gpu.errors import InputError, Skipped

ONE = 65535  # steps of a map, which are those of the 16-bit files that it is kept in
_NOTHING = 1e-6  # gray levels, or what a method counts in: smaller maxima are rounding errors
_CHUNK_IMAGES = 32  # among which images of equal size are batched

Item = TypeVar("Item", bound=Sequence[Any])


def make_method(name: str, parameters: Sequence[str] = ()) -> Method:
    """Build a method with some of its parameters changed.

    Parameters
    ----------
    name : str
        A name in `mclc_gpu.classical.config.METHODS`.
    parameters : sequence of str
        Each "NAME=VALUE".

    Raises
    ------
    InputError
        An unknown method or parameter, or a value out of range; the message lists names and defaults.

    Examples
    --------
    >>> from mclc_gpu.classical.predictor import make_method
    >>> make_method("tophat", ["radius=3"])
    TopHat(element='disk', radius=3, inner=3)
    """
    kind = METHODS.find(name)
    hints = get_type_hints(kind)
    defaults = {item.name: item.default for item in fields(kind)}  # type: ignore[arg-type]
    known = ", ".join(f"{parameter}={value}" for parameter, value in defaults.items())
    changes: dict[str, Any] = {}
    for text in parameters:
        parameter, given, value = text.partition("=")
        if not given or parameter not in defaults:
            raise InputError(f"--parameter {text}: {name} has {known}; give one of these")
        try:
            changes[parameter] = hints[parameter](value)
        except ValueError as error:
            raise InputError(f"--parameter {text}: not a number; {name} has {known}") from error
    try:
        return kind(**changes)
    except ValueError as error:
        raise InputError(f"--parameter {' '.join(parameters)}: {error}") from error


def scaled(saliency: torch.Tensor, full_scale: float | None = None) -> torch.Tensor:
    """Scale maps to 0..1 in steps of 1/65535.

    Parameters
    ----------
    saliency : Tensor [B, H, W], float32
        Finite and >= 0.
    full_scale : float, optional
        Value that becomes 1, as do larger ones; by default the highest value of each image. A map whose
        highest value is below 1e-6 becomes 0.

    Returns
    -------
    Tensor [B, H, W], float32

    Examples
    --------
    >>> import torch
    >>> from mclc_gpu.classical.predictor import scaled
    >>> scaled(torch.tensor([[[0.0, 2.0, 4.0]]]))[0, 0, 2].item()
    1.0
    """
    values = saliency.double()
    peak = values.amax((1, 2), keepdim=True)
    full = peak if full_scale is None else torch.full_like(peak, full_scale)
    share = torch.where(peak > _NOTHING, values / full.clamp(min=_NOTHING), 0.0).clamp(0, 1)
    return ((share * ONE).round() / ONE).float()


@dataclass(frozen=True, slots=True, eq=False)
class MethodPredictor:
    """Untrained detector that runs on images as they are read.

    Attributes
    ----------
    method : Method
    scale : {"image", "gray"}
        See `mclc_gpu.classical.config.MethodOptions`.
    device : torch.device or str
    groups : dict of str to int
        Number of the group of frames that run together, by image name, for methods with a `length` above 1;
        see `sequences`.

    Raises
    ------
    InputError
        If the scale is in gray levels and the method's saliency is not.

    Examples
    --------
    >>> import numpy as np
    >>> from mclc_gpu.classical.predictor import MethodPredictor
    >>> from mclc_gpu.classical.tophat import TopHat
    >>> image = np.full((30, 40), 90, np.uint8)
    >>> image[10, 20] = 120
    >>> (found,) = MethodPredictor(TopHat()).probabilities([image])
    >>> found.shape, float(found[10, 20]), float(found[0, 0])
    ((30, 40), 1.0, 0.0)
    """

    method: Method
    scale: str = "image"
    device: torch.device | str = "cpu"
    groups: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.scale == "gray" and not self.method.in_gray_levels:
            raise InputError("--map-scale gray: the map of this method is not in gray levels; use image")

    def probabilities(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Compute the map of every image. Images of equal size run together, in the order given.

        Gray levels are those of `network_levels`: 8-bit images as they are, others stretched to 0..255 by
        their own range; color images by their luma. A constant image has the map 0.

        Parameters
        ----------
        images : sequence of ndarray [H, W] or [H, W, 3]
            Any type that `network_levels` takes. For a method with a `length` above 1, frames of one
            sequence, at most that many.

        Returns
        -------
        list of ndarray [H, W], float32
            0 to 1 in steps of 1/65535.

        Raises
        ------
        InputError
            If an image holds NaN or infinite pixels, or the method's result is not finite.
        """
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            if image.dtype.kind == "f" and not np.isfinite(image).all():
                raise InputError("an image holds NaN or infinite pixels; replace them")
            groups.setdefault(image.shape[:2], []).append(index)
        results: dict[int, np.ndarray] = {}
        for (height, width), indices in groups.items():
            on_cpu = torch.device(self.device).type == "cpu"
            most = self.method.cpu_pixels if on_cpu else self.method.batch_pixels
            together = len(indices) if self.method.length() > 1 else max(1, most // (height * width))
            for start in range(0, len(indices), together):
                batch = indices[start : start + together]
                gray = np.stack([network_levels(images[index], 1)[0] for index in batch])
                results.update(zip(batch, self._maps(gray), strict=True))
        return [results[index] for index in range(len(images))]

    @torch.inference_mode()
    def _maps(self, gray: np.ndarray) -> np.ndarray:
        """Compute the scaled maps of gray images [B, H, W]."""
        levels = torch.from_numpy(gray).to(self.device)
        saliency = self.method.saliency(levels)
        if not bool(torch.isfinite(saliency).all()):
            name = type(self.method).__name__
            raise InputError(f"{name} has no finite result for an image of these parameters; change them")
        constant = levels.amax((1, 2)) == levels.amin((1, 2))
        maps = scaled(saliency, 255.0 if self.scale == "gray" else None)
        maps[constant] = 0
        return maps.cpu().numpy()

    def stream(self, items: Iterable[tuple[Item, np.ndarray]]) -> Iterator[tuple[Item, np.ndarray | Skipped]]:
        """Yield (item, map) pairs in the order of the input, with bounded memory.

        An image that the method cannot solve has a `Skipped` with its name instead of a map; with a `length`
        above 1, so have all frames of its group.

        Parameters
        ----------
        items : iterable of (item, image)
            Of the item, a sequence, the first element is the image's name. Images of equal size among a few
            dozen consecutive ones run together; with a `length` above 1, the frames of a group.
        """
        if self.method.length() > 1:
            for _, group in groupby(items, key=lambda pair: self.groups.get(pair[0][0])):
                yield from self._chunk(list(group))
            return
        chunk: list[tuple[Item, np.ndarray]] = []
        pixels = 0
        for item, image in items:
            chunk.append((item, image))
            pixels += image.shape[0] * image.shape[1]
            if len(chunk) >= _CHUNK_IMAGES or pixels >= self.method.batch_pixels:
                yield from self._chunk(chunk)
                chunk, pixels = [], 0
        yield from self._chunk(chunk)

    def _chunk(self, chunk: list[tuple[Item, np.ndarray]]) -> Iterator[tuple[Item, np.ndarray | Skipped]]:
        try:
            found = self.probabilities([image for _, image in chunk])
        except InputError as error:
            if len(chunk) > 1 and self.method.length() == 1:
                for pair in chunk:
                    yield from self._chunk([pair])
            else:
                yield from ((item, Skipped(str(item[0]), str(error))) for item, _ in chunk)
            return
        yield from zip((item for item, _ in chunk), found, strict=True)


def sequences(names: Iterable[str], length: int) -> dict[str, int]:
    """Number groups of frames that run together: up to `length` consecutive names in one folder.

    Parameters
    ----------
    names : iterable of str
        Names of images in the order of time; those in sub-folders are paths, "sequence/000123".
    length : int >= 1

    Returns
    -------
    dict of str to int

    Examples
    --------
    >>> from mclc_gpu.classical.predictor import sequences
    >>> sequences(["a/1", "a/2", "a/3", "b/1"], 2)
    {'a/1': 0, 'a/2': 0, 'a/3': 1, 'b/1': 2}
    """
    groups: dict[str, int] = {}
    number = -1
    for _, folder in groupby(names, key=lambda name: name.rpartition("/")[0]):
        for place, name in enumerate(folder):
            number += place % length == 0
            groups[name] = number
    return groups
