"""mclc_gpu: Monte Carlo linear clustering for infrared small targets, from one click per target to pixel masks."""

from pathlib import Path

_HERE = Path(__file__).resolve().parent
# In a checkout the sub-packages `kernels`, `networks` and `bench` lie beside this folder, not inside it.
if not (_HERE / "kernels").is_dir():
    __path__.append(str(_HERE.parent))
