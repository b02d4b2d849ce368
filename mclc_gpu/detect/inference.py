"""Running a detector on images of any size and type: gray levels, tiles, batches."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from mclc_gpu.data.images import gray_levels
from mclc_gpu.detect.checkpoint import Normalisation
from mclc_gpu.detect.config import OVERLAP, TILE
from mclc_gpu.errors import InputError
from mclc_gpu.networks.blocks import Detector

# Sixteen images of 256x256 at once: enough to keep a GPU busy, and within the memory of a small one.
BATCH_PIXELS = 1 << 20
_CHUNK_IMAGES = 32  # looked through for images of equal size

Item = TypeVar("Item")


def to_input(image: np.ndarray, in_channels: int, normalisation: Normalisation) -> np.ndarray:
    """What a network is given for an image: its `gray_levels` less the mean, over the deviation.

    Returns float32 [C, H, W]; `normalisation` is that of the network's training images.
    """
    return (gray_levels(image, in_channels) - np.float32(normalisation.mean)) / np.float32(normalisation.std)


@contextmanager
def evaluating(network: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block, the network's own mode after it."""
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
    """Target probability of every pixel: float32 [B, H, W] in 0..1, on the network's device.

    Sides longer than `tile` are cut into tiles that overlap by at least `overlap` pixels and are spread
    evenly. Where tiles overlap they are averaged with weights that fall smoothly to 0 a quarter of the
    overlap before a tile's own edge, so that a network that looks no farther than that quarter answers as it
    would for the whole image. Sides up to `tile` are not cut.

    Args:
        network: In evaluation mode.
        images: float32 [B, C, H, W], see `to_input`.
        tile: Longest side run in one piece, pixels.
        overlap: Pixels, 0 to half a tile.
        amp: Run in bfloat16 where PyTorch holds it safe (autocast). It pays on CUDA devices.
        batch_pixels: Images or tiles run together hold as many pixels, but it is one at least.

    Raises:
        ValueError: `tile`, `overlap` or `batch_pixels` out of range.
    """
    if tile < 1 or not 0 <= overlap <= tile // 2 or batch_pixels < 1:
        raise ValueError(f"tile {tile}, overlap {overlap}: give 1 px or more, and 0 to half of a tile")
    device = next(network.parameters()).device
    count, _, height, width = images.shape
    rows, columns = _spans(height, tile, overlap, device), _spans(width, tile, overlap, device)
    together = max(1, batch_pixels // (rows[0].size * columns[0].size))
    if len(rows) == len(columns) == 1:
        return torch.cat([_answer(network, batch.to(device), amp) for batch in images.split(together)])
    blended = torch.zeros(count, height, width, device=device)
    places = [(image, row, column) for image in range(count) for row in rows for column in columns]
    for start in range(0, len(places), together):
        batch = places[start : start + together]
        tiles = torch.stack([images[image, :, row.slice, column.slice] for image, row, column in batch])
        answers = _answer(network, tiles.to(device), amp)
        for answer, (image, row, column) in zip(answers, batch, strict=True):
            blended[image, row.slice, column.slice] += answer * row.weight[:, None] * column.weight
    return blended


def _answer(network: Detector, batch: torch.Tensor, amp: bool) -> torch.Tensor:
    """Probabilities float32 [B, H, W] of a batch that is run as it is."""
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=amp):
        logits = network(batch).masks[0]
    return torch.sigmoid(logits[:, 0].float())


@dataclass(frozen=True, slots=True, eq=False)
class _Span:
    """Where a tile lies along one axis, and its weights float32 [size]; those of all tiles sum to 1."""

    start: int
    weight: torch.Tensor

    @property
    def size(self) -> int:
        return len(self.weight)

    @property
    def slice(self) -> slice:
        return slice(self.start, self.start + self.size)


def _spans(length: int, tile: int, overlap: int, device: torch.device) -> list[_Span]:
    """Tiles of equal size that cover 0..length."""
    size = min(tile, length)
    count = 1 if length <= tile else math.ceil((length - overlap) / (tile - overlap))
    starts = np.linspace(0, length - size, count).round().astype(int)
    inside = np.arange(size) + 0.5
    total = np.zeros(length)
    weights = []
    for start in starts:
        # The image's own borders are not edges of a tile: nothing better is known there.
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
    """Weight at a distance from a tile's edge: 0 to a quarter of the overlap, 1 from three quarters on."""
    if overlap == 0:
        return np.ones_like(distance)
    rise = np.clip(2 * distance / overlap - 0.5, 0, 1)
    return rise * rise * (3 - 2 * rise)


@dataclass(frozen=True, slots=True, eq=False)
class Predictor:
    """A detector with all that it needs to answer for images as they are read.

    Attributes:
        network: The detector; it runs in evaluation mode, on the device that it is on.
        normalisation: Of its training images.
        tile, overlap, amp, batch_pixels: See `probability`.
    """

    network: Detector
    normalisation: Normalisation
    tile: int = TILE
    overlap: int = OVERLAP
    amp: bool = False
    batch_pixels: int = BATCH_PIXELS

    def probabilities(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Target probability of every pixel of every image: float32 [H, W] in 0..1, in the images' order.

        Images of equal size run together. `images`: [H, W] or [H, W, 3] of any type, see `gray_levels`.

        Raises:
            InputError: The network answers with NaN, as one does whose training diverged.
        """
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            groups.setdefault(image.shape[:2], []).append(index)
        answers: dict[int, np.ndarray] = {}
        with evaluating(self.network):
            for indices in groups.values():
                inputs = [to_input(images[i], self.network.in_channels, self.normalisation) for i in indices]
                answer = probability(
                    self.network,
                    torch.from_numpy(np.stack(inputs)),
                    self.tile,
                    self.overlap,
                    self.amp,
                    self.batch_pixels,
                )
                if not bool(torch.isfinite(answer).all()):
                    raise InputError(
                        "the network answers NaN: its training has diverged, use another checkpoint"
                    )
                answers.update(zip(indices, answer.cpu().numpy(), strict=True))
        return [answers[index] for index in range(len(images))]

    def stream(self, items: Iterable[tuple[Item, np.ndarray]]) -> Iterator[tuple[Item, np.ndarray]]:
        """Whatever comes with an image, with the image's `probabilities`, in order, for any number of them.

        Images of equal size among a few dozen neighbours run together; no more are in memory at a time.
        """
        chunk: list[tuple[Item, np.ndarray]] = []
        pixels = 0
        for item, image in items:
            chunk.append((item, image))
            pixels += image.shape[0] * image.shape[1]
            if len(chunk) >= _CHUNK_IMAGES or pixels >= 4 * self.batch_pixels:
                yield from self._answered(chunk)
                chunk, pixels = [], 0
        yield from self._answered(chunk)

    def _answered(self, chunk: list[tuple[Item, np.ndarray]]) -> Iterator[tuple[Item, np.ndarray]]:
        answers = self.probabilities([image for _, image in chunk])
        return zip((item for item, _ in chunk), answers, strict=True)
