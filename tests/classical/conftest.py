"""Real frames for the tests of untrained detectors."""

from pathlib import Path

import numpy as np
import pytest

from mclc_gpu.data.images import network_levels, read_image


@pytest.fixture(scope="session")
def nuaa_frames(nuaa: Path) -> list[np.ndarray]:
    """Gray levels, float32 [H, W], of 24 frames spread over NUAA-SIRST."""
    paths = sorted((nuaa / "images").glob("*.png"))
    return [network_levels(read_image(path), 1)[0] for path in paths[:: len(paths) // 24][:24]]
