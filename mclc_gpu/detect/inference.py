"""Run a detector on images of any size and type: normalization, tiles, batches."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from mclc_gpu.data.images import network_levels
from mclc_gpu.detect.checkpoint import Normalization, Trained
from mclc_gpu.detect.config import AUGMENTATIONS, OVERLAP, TILE, DetectorOptions
from mclc_gpu.errors import InputError
from mclc_gpu.networks.blocks import Detector

# Sixteen images of 256x256 per batch keep a GPU busy and fit the memory of a small one.
BATCH_PIXELS = 1 << 20
_CHUNK_IMAGES = 32  # among which images of equal size are batched

Item = TypeVar("Item")


def to_input(image: np.ndarray, in_channels: int, normalization: Normalization) -> np.ndarray:
    """Compute the input of a network: gray levels less the mean, over the standard deviation.

    Parameters
    ----------
    image : ndarray [H, W] or [H, W, 3]
        Any type that `mclc_gpu.data.images.network_levels` takes.
    in_channels : {1, 3}
    normalization : Normalization
        Of the network's training images.

    Returns
    -------
    ndarray [C, H, W], float32
    """
    levels = network_levels(image, in_channels, normalization.robust)
    return (levels - np.float32(normalization.mean)) / np.float32(normalization.std)


@contextmanager
def evaluating(network: torch.nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode inside the block, and into its own mode after it."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


@torch.inference_mode()
def probability(
    network: Detector,
    images: torch.Tensor,
    tile: int = TILE,
    overlap: int = OVERLAP,
    amp: bool = False,
    batch_pixels: int = BATCH_PIXELS,
) -> torch.Tensor:
    """Compute the target probability of every pixel.

    Sides longer than `tile` are cut into evenly spread tiles that overlap by at least `overlap` pixels. In
    the overlap they are averaged with weights that fall smoothly to 0 a quarter of the overlap before a
    tile's own edge, so that a network whose receptive field reaches no farther than that quarter gives the
    same result as for the whole image. Sides up to `tile` are not cut.

    Parameters
    ----------
    network : Detector
        In evaluation mode.
    images : Tensor [B, C, H, W], float32
        See `to_input`.
    tile : int >= 1, pixels
        Longest side that is run in one piece.
    overlap : int, pixels
        0 to half of `tile`.
    amp : bool
        Run in bfloat16 where PyTorch holds it safe (autocast), which pays on CUDA devices.
    batch_pixels : int >= 1
        Most pixels of the images or tiles that run together, which are one at least.

    Returns
    -------
    Tensor [B, H, W], float32
        0 to 1, on the device of the network.

    Raises
    ------
    ValueError
        If `tile`, `overlap` or `batch_pixels` is out of range.
    """
    if tile < 1 or not 0 <= overlap <= tile // 2 or batch_pixels < 1:
        raise ValueError(f"tile {tile}, overlap {overlap}: give 1 px or more, and 0 to half of a tile")
    device = next(network.parameters()).device
    count, _, height, width = images.shape
    rows, columns = _spans(height, tile, overlap, device), _spans(width, tile, overlap, device)
    together = max(1, batch_pixels // (rows[0].size * columns[0].size))
    if len(rows) == len(columns) == 1:
        return torch.cat([_untiled(network, batch.to(device), amp) for batch in images.split(together)])
    blended = torch.zeros(count, height, width, device=device)
    places = [(image, row, column) for image in range(count) for row in rows for column in columns]
    for start in range(0, len(places), together):
        batch = places[start : start + together]
        tiles = torch.stack([images[image, :, row.slice, column.slice] for image, row, column in batch])
        found = _untiled(network, tiles.to(device), amp)
        for one, (image, row, column) in zip(found, batch, strict=True):
            blended[image, row.slice, column.slice] += one * row.weight[:, None] * column.weight
    return blended


def _untiled(network: Detector, batch: torch.Tensor, amp: bool) -> torch.Tensor:
    """Compute probabilities [B, H, W], float32, of a batch that is run in one piece."""
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=amp):
        logits = network(batch).masks[0]
    return torch.sigmoid(logits[:, 0].float())


@dataclass(frozen=True, slots=True, eq=False)
class _Span:
    """Extent of a tile along one axis, and its weights [size], float32; those of all tiles sum to 1."""

    start: int
    weight: torch.Tensor

    @property
    def size(self) -> int:
        return len(self.weight)

    @property
    def slice(self) -> slice:
        return slice(self.start, self.start + self.size)


def _spans(length: int, tile: int, overlap: int, device: torch.device) -> list[_Span]:
    """Spread tiles of equal size over 0..length."""
    size = min(tile, length)
    count = 1 if length <= tile else math.ceil((length - overlap) / (tile - overlap))
    starts = np.linspace(0, length - size, count).round().astype(int)
    inside = np.arange(size) + 0.5
    total = np.zeros(length)
    weights = []
    for start in starts:
        # The image's own borders are no tile edges: no other tile knows more there.
        left = _ramp(inside, overlap) if start > 0 else 1.0
        right = _ramp(size - inside, overlap) if start + size < length else 1.0
        weights.append(np.ones(size) * left * right)
        total[start : start + size] += weights[-1]
    shares = [weight / total[start : start + size] for start, weight in zip(starts, weights, strict=True)]
    return [
        _Span(int(start), torch.tensor(share, dtype=torch.float32, device=device))
        for start, share in zip(starts, shares, strict=True)
    ]


def _ramp(distance: np.ndarray, overlap: int) -> np.ndarray:
    """Weight pixels by their distance from a tile's edge: 0 up to 1/4 of the overlap, 1 from 3/4 on."""
    if overlap == 0:
        return np.ones_like(distance)
    rise = np.clip(2 * distance / overlap - 0.5, 0, 1)
    return rise * rise * (3 - 2 * rise)


Run = Callable[[torch.Tensor], torch.Tensor]  # images [B, C, H, W] to probability maps [B, H, W]


def single_view(run: Run, images: torch.Tensor) -> torch.Tensor:
    """Compute the probabilities of images as they are."""
    return run(images)


def mean_over_flips(run: Run, images: torch.Tensor) -> torch.Tensor:
    """Compute the mean probabilities of images, their mirror images along either axis, and along both."""
    total = run(images)
    for sides in ((-1,), (-2,), (-2, -1)):
        total = total + run(images.flip(sides)).flip(sides)
    return total / 4


@dataclass(frozen=True, slots=True, eq=False)
class Predictor:
    """Detector that runs on images as they are read.

    Attributes
    ----------
    network : Detector
        Runs in evaluation mode, on the device that it is on.
    normalization : Normalization
        Of its training images.
    tile, overlap, amp, batch_pixels
        See `probability`.
    tta : str
        Test-time augmentation, a name in `mclc_gpu.detect.config.AUGMENTATIONS`.

    Examples
    --------
    >>> import numpy as np
    >>> from mclc_gpu.detect.checkpoint import Normalization
    >>> from mclc_gpu.detect.inference import Predictor
    >>> from mclc_gpu.networks.zoo import build
    >>> predictor = Predictor(build("acm"), Normalization(80.0, 20.0))
    >>> images = [np.full((40, 50), 90, np.uint8), np.full((30, 30, 3), 900, np.uint16)]
    >>> [(found.shape, str(found.dtype)) for found in predictor.probabilities(images)]
    [((40, 50), 'float32'), ((30, 30), 'float32')]
    """

    network: Detector
    normalization: Normalization
    tile: int = TILE
    overlap: int = OVERLAP
    amp: bool = False
    batch_pixels: int = BATCH_PIXELS
    tta: str = "none"

    def probabilities(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Compute the target probability of every pixel of every image. Images of equal size run together.

        Parameters
        ----------
        images : sequence of ndarray [H, W] or [H, W, 3]
            Any type that `mclc_gpu.data.images.network_levels` takes.

        Returns
        -------
        list of ndarray [H, W], float32
            0 to 1, in the order of the images.

        Raises
        ------
        InputError
            If the network returns NaN, like one whose training diverged.
        """
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            groups.setdefault(image.shape[:2], []).append(index)
        results: dict[int, np.ndarray] = {}
        augmented = AUGMENTATIONS.find(self.tta)
        run = partial(
            probability,
            self.network,
            tile=self.tile,
            overlap=self.overlap,
            amp=self.amp,
            batch_pixels=self.batch_pixels,
        )
        with evaluating(self.network):
            for indices in groups.values():
                inputs = [to_input(images[i], self.network.in_channels, self.normalization) for i in indices]
                found = augmented(run, torch.from_numpy(np.stack(inputs)))
                if not bool(torch.isfinite(found).all()):
                    raise InputError(
                        "the network returns NaN: its training has diverged, use another checkpoint"
                    )
                results.update(zip(indices, found.cpu().numpy(), strict=True))
        return [results[index] for index in range(len(images))]

    def stream(self, items: Iterable[tuple[Item, np.ndarray]]) -> Iterator[tuple[Item, np.ndarray]]:
        """Yield (item, probability map) pairs in the order of the input, with bounded memory.

        Parameters
        ----------
        items : iterable of (item, image)
            Anything with its image. Images of equal size among a few dozen consecutive ones run together.

        Raises
        ------
        InputError
            As `probabilities`.
        """
        chunk: list[tuple[Item, np.ndarray]] = []
        pixels = 0
        for item, image in items:
            chunk.append((item, image))
            pixels += image.shape[0] * image.shape[1]
            if len(chunk) >= _CHUNK_IMAGES or pixels >= 4 * self.batch_pixels:
                yield from self._chunk(chunk)
                chunk, pixels = [], 0
        yield from self._chunk(chunk)

    def _chunk(self, chunk: list[tuple[Item, np.ndarray]]) -> Iterator[tuple[Item, np.ndarray]]:
        found = self.probabilities([image for _, image in chunk])
        return zip((item for item, _ in chunk), found, strict=True)


def predictor_of(trained: Trained, options: DetectorOptions) -> Predictor:
    """Return a trained detector that runs as options say."""
    return Predictor(
        trained.network,
        trained.normalization,
        tile=options.tile,
        overlap=options.overlap,
        amp=options.amp,
        tta=options.tta,
    )
