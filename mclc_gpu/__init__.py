"""Monte Carlo linear clustering for infrared small targets: from one click per target to pixel masks."""

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

# In a checkout these sub-packages lie beside this folder, not inside it; no other sibling is a sub-package.
_HERE = Path(__file__).resolve().parent
for _name in ("kernels", "networks", "bench"):
    if not (_HERE / _name).is_dir():
        _spec = ModuleSpec(f"{__name__}.{_name}", None, is_package=True)
        _spec.submodule_search_locations = [str(_HERE.parent / _name)]
        globals()[_name] = sys.modules[_spec.name] = module_from_spec(_spec)

# Public names by the modules that define them, which are imported on first use: `import mclc_gpu` is quick.
_HOMES = {
    "ComponentConfig": "mclc_gpu.kernels.config",
    "CrfConfig": "mclc_gpu.kernels.config",
    "DataSet": "mclc_gpu.train.config",
    "EvaluateOptions": "mclc_gpu.detect.config",
    "InputError": "mclc_gpu.errors",
    "LabelConfig": "mclc_gpu.labels.config",
    "LabelOptions": "mclc_gpu.labels.config",
    "LabelRun": "mclc_gpu.labels.folder",
    "Point": "mclc_gpu.data.annotations",
    "PredictOptions": "mclc_gpu.detect.config",
    "Sample": "mclc_gpu.data.datasets",
    "ScoreOptions": "mclc_gpu.score.config",
    "Scores": "mclc_gpu.score.metrics",
    "TargetMask": "mclc_gpu.labels.pipeline",
    "TrainConfig": "mclc_gpu.train.config",
    "TrainOptions": "mclc_gpu.train.config",
    "TrialConfig": "mclc_gpu.kernels.config",
    "TuneOptions": "mclc_gpu.tune.config",
    "build": "mclc_gpu.networks.zoo",
    "dense_crf": "mclc_gpu.kernels.crf",
    "evaluate_images": "mclc_gpu.detect.evaluate",
    "fit": "mclc_gpu.train.fit",
    "kmeans": "mclc_gpu.kernels.slic",
    "label_dataset": "mclc_gpu.labels.run",
    "label_images": "mclc_gpu.labels.pipeline",
    "predict_images": "mclc_gpu.detect.predict",
    "preset": "mclc_gpu.labels.config",
    "read_image": "mclc_gpu.data.images",
    "read_mask": "mclc_gpu.data.images",
    "read_points": "mclc_gpu.data.points",
    "score_folders": "mclc_gpu.score.folders",
    "slic": "mclc_gpu.kernels.slic",
    "train_detector": "mclc_gpu.train.fit",
    "tune_labels": "mclc_gpu.tune.run",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
