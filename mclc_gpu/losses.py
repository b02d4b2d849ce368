"""What training minimises."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mclc_gpu.networks.blocks import Logits
from mclc_gpu.networks.isnet import gradient_magnitude

_SMOOTH = 1.0
_EDGE_BCE = 10.0  # weight of the edge's cross-entropy in ISNet's published training


def soft_iou(logits: Tensor, truth: Tensor) -> Tensor:
    """Soft-IoU loss: 1 - mean over images of (I + 1) / (P + T - I + 1), in 0..1.

    With p = sigmoid(logits) and truth t, summed over the pixels of one image: I = sum p t, P = sum p,
    T = sum t (Rahman & Wang, ISVC 2016; its use for small targets: Dai et al., WACV 2021, arXiv:2009.14530).
    The ones keep an image without targets defined: its loss is P / (P + 1), which falls as the prediction
    empties. The ratio is taken image by image, so that a small target counts as much as a large one
    elsewhere in the batch and the loss of a batch is the mean of its parts' on several devices; DNANet's
    published code sums over the whole batch before dividing.

    `logits`: [B, 1, H, W]; `truth`: the same shape, 0 to 1. Computed in float32.
    """
    probability = torch.sigmoid(logits.float())
    intersection = (probability * truth).sum(dim=(1, 2, 3))
    union = (probability + truth).sum(dim=(1, 2, 3)) - intersection
    return 1 - ((intersection + _SMOOTH) / (union + _SMOOTH)).mean()


def cross_entropy(logits: Tensor, truth: Tensor) -> Tensor:
    """Mean binary cross-entropy over all pixels; `logits` and `truth` as for `soft_iou`."""
    return F.binary_cross_entropy_with_logits(logits.float(), truth)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"soft-iou": soft_iou, "bce": cross_entropy}


def detector_loss(answer: Logits, truth: Tensor, name: str = "soft-iou") -> Tensor:
    """Loss of a network's answer in training mode: a scalar.

    The mean of the loss over the answer and its deeply supervised side outputs (DNANet: 4, UIUNet: 7), as
    DNANet was published. UIUNet was published with the sum of cross-entropies: `name` "bce" is that
    over 7, a factor that Adagrad and Adam do not see. To the edge of a network that draws one (ISNet) its own
    published loss is added: 10 times cross-entropy plus Soft-IoU, against `edge_target`.

    `truth`: float32 [B, 1, H, W], 0 or 1. `name`: one of LOSSES.
    """
    loss = LOSSES[name]
    total = torch.stack([loss(mask, truth) for mask in answer.masks]).mean()
    if answer.edge is not None:
        target = edge_target(truth)
        total = total + _EDGE_BCE * cross_entropy(answer.edge, target) + soft_iou(answer.edge, target)
    return total


def edge_target(truth: Tensor) -> Tensor:
    """What an edge branch has to answer: the masks' gradient magnitude, at most 1.

    ISNet was published without the limit. At corners, where the magnitude is sqrt(2), cross-entropy then has
    no least value and pushes the logits without end.
    """
    return gradient_magnitude(truth).clamp(max=1)
