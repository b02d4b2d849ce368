"""Monte Carlo linear clustering for infrared small targets: from one click per target to pixel masks."""

from importlib import import_module
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
# In a checkout the sub-packages `kernels`, `networks` and `bench` lie beside this folder, not inside it.
if not (_HERE / "kernels").is_dir():
    __path__.append(str(_HERE.parent))

# Public names and the modules that hold them, imported when asked for: importing the package stays quick.
_HOMES = {
    "InputError": "mclc_gpu.errors",
    "LabelConfig": "mclc_gpu.labelconfig",
    "Point": "mclc_gpu.data.points",
    "Sample": "mclc_gpu.data.training_set",
    "Scores": "mclc_gpu.metrics",
    "TargetMask": "mclc_gpu.labeling",
    "TrainConfig": "mclc_gpu.training",
    "TrialConfig": "mclc_gpu.kernels.trials",
    "build": "mclc_gpu.networks.zoo",
    "dense_crf": "mclc_gpu.kernels.crf",
    "fit": "mclc_gpu.fitting",
    "kmeans": "mclc_gpu.kernels.kmeans",
    "label_images": "mclc_gpu.labeling",
    "read_image": "mclc_gpu.data.images",
    "read_points": "mclc_gpu.data.points",
    "slic": "mclc_gpu.kernels.slic",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
