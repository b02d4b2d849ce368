"""What training minimises."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mclc_gpu.networks.blocks import Logits
from mclc_gpu.networks.isnet import gradient_magnitude

Total = Callable[[Tensor], Tensor]

_SMOOTH = 1.0
_EDGE_BCE = 10.0  # weight of the edge's cross-entropy in ISNet's published training


def here_only(sums: Tensor) -> Tensor:
    """Sums over the whole batch, when this process has all of it: the sums as they are."""
    return sums


def soft_iou(logits: Tensor, truth: Tensor, total: Total = here_only) -> Tensor:
    """Soft-IoU loss: 1 - (I + 1) / (P + T - I + 1), in 0..1.

    With p = sigmoid(logits) and truth t, summed over all pixels of the whole batch: I = sum p t, P = sum p,
    T = sum t (Rahman & Wang, ISVC 2016; summed over the batch as in the published code of DNANet, Li et al.,
    IEEE TIP 2023, arXiv:2106.00487). The ones keep a batch without targets defined: its loss is P / (P + 1).
    Taken image by image instead, crops without targets, whose own loss hardly moves before P falls to a few
    pixels, outweigh the others: ACM then learned next to nothing from NUAA-SIRST in the epochs in which this
    sum took it to an IoU of 0.4.

    `logits`: [B, 1, H, W]; `truth`: the same shape, 0 to 1. Computed in float32. `total` adds up sums over
    the processes that share a batch.
    """
    probability = torch.sigmoid(logits.float())
    both = (probability * truth).sum()
    intersection, both_areas = total(torch.stack([both, probability.sum() + truth.sum()])).unbind()
    return 1 - (intersection + _SMOOTH) / (both_areas - intersection + _SMOOTH)


def cross_entropy(logits: Tensor, truth: Tensor, total: Total = here_only) -> Tensor:
    """Mean binary cross-entropy over all pixels; arguments as for `soft_iou`.

    Of several processes each gives its own mean, whose gradients are averaged: `total` is not needed.
    """
    del total
    return F.binary_cross_entropy_with_logits(logits.float(), truth)


LOSSES: dict[str, Callable[[Tensor, Tensor, Total], Tensor]] = {"soft-iou": soft_iou, "bce": cross_entropy}


def detector_loss(answer: Logits, truth: Tensor, name: str = "soft-iou", total: Total = here_only) -> Tensor:
    """Loss of a network's answer in training mode: a scalar.

    The mean of the loss over the answer and its deeply supervised side outputs (DNANet: 4, UIUNet: 7), as
    DNANet was published. UIUNet was published with the sum of cross-entropies: `name` "bce" is that
    over 7, a factor that Adagrad and Adam do not see. To the edge of a network that draws one (ISNet) its own
    published loss is added: 10 times cross-entropy plus Soft-IoU, against `edge_target`.

    `truth`: float32 [B, 1, H, W], 0 or 1. `name`: one of LOSSES. `total`: as for `soft_iou`.
    """
    loss = LOSSES[name]
    result = torch.stack([loss(mask, truth, total) for mask in answer.masks]).mean()
    if answer.edge is not None:
        target = edge_target(truth)
        edge = soft_iou(answer.edge, target, total)
        result = result + _EDGE_BCE * cross_entropy(answer.edge, target) + edge
    return result


def edge_target(truth: Tensor) -> Tensor:
    """What an edge branch has to answer: the masks' gradient magnitude, at most 1.

    ISNet was published without the limit. At corners, where the magnitude is sqrt(2), cross-entropy then has
    no least value and pushes the logits without end.
    """
    return gradient_magnitude(truth).clamp(max=1)
