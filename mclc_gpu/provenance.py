"""What a run's account says of the machine and the programs that made it."""

import os
import platform
from typing import Any

import numpy as np
import torch

from mclc_gpu.journal import package_version


def provenance(device: torch.device) -> dict[str, Any]:
    """Versions and device, for the JSON file that a run leaves behind."""
    cuda = device.type == "cuda"
    return {
        "version": package_version(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "device": torch.cuda.get_device_name(device) if cuda else f"cpu ({os.cpu_count()} threads)",
    }
