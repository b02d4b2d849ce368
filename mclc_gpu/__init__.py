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
    "LabelConfig": "mclc_gpu.labels.config",
    "Point": "mclc_gpu.data.annotations",
    "Sample": "mclc_gpu.data.datasets",
    "Scores": "mclc_gpu.score.metrics",
    "TargetMask": "mclc_gpu.labels.pipeline",
    "TrainConfig": "mclc_gpu.train.trainer",
    "TrialConfig": "mclc_gpu.kernels.config",
    "build": "mclc_gpu.networks.zoo",
    "dense_crf": "mclc_gpu.kernels.crf",
    "fit": "mclc_gpu.train.fit",
    "kmeans": "mclc_gpu.kernels.slic",
    "label_images": "mclc_gpu.labels.pipeline",
    "read_image": "mclc_gpu.data.images",
    "read_points": "mclc_gpu.data.points",
    "slic": "mclc_gpu.kernels.slic",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
