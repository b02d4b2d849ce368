"""Contests of SLIC on whole images against the other packages that have it.

All start from and end with arrays in the host's memory. The peers of a single image use the threads they
have; of a batch each takes one image at a time in a process per core, with one thread.
"""

import importlib.util
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from mclc_gpu.bench.contest import Absent, Contest, Contestant, clocked
from mclc_gpu.bench.ground import Ground
from mclc_gpu.bench.slic_peers import Peer, peers
from mclc_gpu.data.synthetic import scene
from mclc_gpu.kernels.slic import slic

INTERVAL, COMPACTNESS = 20, 10.0  # mean side of a segment in pixels
# Height and width of a single image, and seconds that the contest may take.
SINGLE = {
    "320x240": (240, 320, 2.0),
    "640x512": (512, 640, 3.0),
    "1024x1024": (1024, 1024, 6.0),
    "2048x2048": (2048, 2048, 15.0),
    "4096x4096": (4096, 4096, 25.0),
}
BATCHES = {"64 of 320x240": (240, 320, 64, 5.0), "16 of 640x512": (512, 640, 16, 5.0)}
HOW_TO_GET = {
    "OpenCV": "pip install opencv-contrib-python-headless, in place of opencv-python-headless",
    "fast-slic": "pip install 'cython<3' setuptools && pip install --no-build-isolation fast-slic",
    "cuda-slic": "pip install cuda-slic cupy",
}
_REMARK = (
    "SLIC: scikit-image gives the same segments as mclc-gpu; OpenCV and fast-slic compute others, with "
    "colours in 8 bits, and fast-slic in 16-bit integers from every third row at a time. The images are "
    "synthetic. Of several the peers take one at a time in a process per core."
)
_DRAWN = 1024  # larger images repeat one of this size, which is drawn in a tenth of the time
_kept: list[np.ndarray] = []  # in a process of the pool, the images of the present contest


def single(ground: Ground, height: int, width: int, seconds: float) -> Contest:
    """One image."""
    height, width = ground.of(height, height // 8), ground.of(width, width // 8)
    frame = scene(0, 0, size=(min(height, _DRAWN), min(width, _DRAWN))).image
    image = _colour(np.tile(frame, (-(-height // _DRAWN), -(-width // _DRAWN))))
    segments = _segments(height, width)
    own = _own(image[None], segments, ground.device)
    contestants = [Contestant("mclc-gpu", clocked(own, ground.device), 1, own=True)]
    for name, peer in _peers(ground.device).items():
        peer(image[:48, :64].copy(), 8, COMPACTNESS)
        run = clocked(partial(peer, image, segments, COMPACTNESS), ground.device)
        contestants.append(Contestant(name, run, 1))
    work = f"SLIC, 1 image of {width}x{height}"
    return Contest(work, "images", contestants, ground.time(seconds), _absent(ground.device), _REMARK)


def batch(ground: Ground, height: int, width: int, count: int, seconds: float) -> Contest:
    """Images of one size at once."""
    height, width, count = ground.of(height, height // 8), ground.of(width, width // 8), ground.of(count, 2)
    made = [_colour(scene(0, index, size=(height, width)).image) for index in range(count)]
    images, segments = np.stack(made), _segments(height, width)
    own = _own(images, segments, ground.device)
    contestants = [Contestant("mclc-gpu", clocked(own, ground.device), count, own=True)]
    for name in peers():

        def run(name: str = name) -> float:
            ground.pool.each(_keep, images, name)
            return ground.pool.seconds(partial(_segment_kept, name, segments), range(count))

        contestants.append(Contestant(name, run, count))
    work = f"SLIC, {count} images of {width}x{height}"
    return Contest(work, "images", contestants, ground.time(seconds), _absent(ground.device), _REMARK)


CONTESTS: dict[str, Callable[[Ground], Contest]] = {
    **{
        name: partial(single, height=height, width=width, seconds=seconds)
        for name, (height, width, seconds) in SINGLE.items()
    },
    **{
        name: partial(batch, height=height, width=width, count=count, seconds=seconds)
        for name, (height, width, count, seconds) in BATCHES.items()
    },
}


def _keep(images: np.ndarray, name: str) -> None:
    """In a process of the pool: have the images and the peer at hand when the clock starts."""
    _kept[:] = images
    _segment_kept(name, 4, 0)


def _segment_kept(name: str, segments: int, index: int) -> None:
    peers()[name](_kept[index], segments, COMPACTNESS)


def _own(images: np.ndarray, segments: int, device: torch.device) -> Callable[[], object]:
    def run(images: np.ndarray = images) -> np.ndarray:
        planar = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
        return slic(planar, segments, COMPACTNESS).cpu().numpy()

    run(images[:, :48, :64])
    return run


def _segments(height: int, width: int) -> int:
    return max(4, height * width // INTERVAL**2)


def _colour(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3], as all peers can take it."""
    return np.ascontiguousarray(np.repeat(image[:, :, None], 3, axis=2) if image.ndim == 2 else image)


def _peers(device: torch.device) -> dict[str, Peer]:
    found = peers()
    if device.type == "cuda" and importlib.util.find_spec("cuda_slic"):
        segment = importlib.import_module("cuda_slic.slic").slic
        found["cuda-slic"] = lambda image, n, compactness: segment(
            image, n_segments=n, compactness=compactness, max_iter=10
        )
    return found


def _absent(device: torch.device) -> tuple[Absent, ...]:
    present = _peers(device)
    missing = {name: f"not installed: {how}" for name, how in HOW_TO_GET.items() if name not in present}
    if device.type == "cpu":
        missing["cuda-slic"] = "runs on CUDA devices only"
    return tuple(Absent(name, why) for name, why in missing.items())
