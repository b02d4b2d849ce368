"""From target probability maps to masks."""

import numpy as np


def threshold_mask(tpm: np.ndarray, level: float, relative: bool) -> np.ndarray:
    """Pixels whose probability reaches a level.

    Args:
        tpm: float32 [h, w] in 0..1.
        level: in 0..1.
        relative: compare TPM / max(TPM), as the published code does, instead of the TPM.

    Returns:
        bool [h, w]. Where the TPM is zero everywhere the mask is empty.
    """
    top = float(tpm.max()) if relative else 1.0
    return (tpm > 0) & (tpm >= level * top)
