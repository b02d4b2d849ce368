"""Losses of a network's output against masks; see `mclc_gpu.train.config.LOSSES`."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mclc_gpu.networks.blocks import Logits
from mclc_gpu.networks.isnet import gradient_magnitude
from mclc_gpu.train.config import LOSSES, WARM_UP, WARM_UP_LOSSES

Total = Callable[[Tensor], Tensor]  # adds up sums over the processes that share a batch

_SMOOTH = 1.0
_ENTROPY = 0.5  # weight of the cross-entropy per target pixel beside Soft-IoU
_FEWEST_PIXELS = 20.0  # of a batch, so that one without targets does not count more than others
_EDGE_BCE = 10.0  # weight of the edge's cross-entropy in the published training of ISNet
_LEAST_MASS = 1e-6  # of a map, so that one without a target has a centroid
UNKNOWN = 10  # pixels around a point label in which nothing is known; the half window of targets of 81 pixels


def own_sums(sums: Tensor) -> Tensor:
    """Return sums unchanged: the total of a process that has the whole batch."""
    return sums


def soft_iou(logits: Tensor, truth: Tensor, total: Total = own_sums) -> Tensor:
    """Compute the Soft-IoU loss 1 - (I + 1) / (P + T - I + 1).

    With p = sigmoid(logits) and truth t, summed over all pixels of the whole batch: I = sum p t, P = sum p,
    T = sum t. Rahman & Wang, "Optimizing Intersection-Over-Union in Deep Neural Networks for Image
    Segmentation", ISVC 2016, doi:10.1007/978-3-319-50835-1_22; summed over the batch as in the published code
    of DNANet (Li et al., IEEE TIP 2023, doi:10.1109/TIP.2022.3199107). The ones keep the loss of a batch
    without targets defined: P / (P + 1).

    With sums per image instead, crops without targets, whose loss hardly changes before P falls to a few
    pixels, outweigh the others: ACM then learned next to nothing from NUAA-SIRST in the epochs in which the
    sum over the batch took it to an IoU of 0.4.

    Parameters
    ----------
    logits : Tensor [B, 1, H, W], floating-point
        Converted to float32.
    truth : Tensor [B, 1, H, W], float32
        0 to 1.
    total : callable
        Adds up sums over the processes that share the batch; see `Ranks.total_with_gradient`.

    Returns
    -------
    Tensor
        Scalar, 0 to 1.

    Examples
    --------
    >>> import torch
    >>> from mclc_gpu.train.losses import soft_iou
    >>> truth = torch.ones(1, 1, 2, 2)
    >>> round(soft_iou(torch.zeros(1, 1, 2, 2), truth).item(), 3)
    0.4
    """
    probability = torch.sigmoid(logits.float())
    both = (probability * truth).sum()
    intersection, both_areas = total(torch.stack([both, probability.sum() + truth.sum()])).unbind()
    return 1 - (intersection + _SMOOTH) / (both_areas - intersection + _SMOOTH)


def cross_entropy(logits: Tensor, truth: Tensor, total: Total = own_sums) -> Tensor:
    """Compute the mean binary cross-entropy over all pixels; parameters as for `soft_iou`.

    `total` is not used: each process returns its own mean, and their gradients are averaged.
    """
    del total
    return F.binary_cross_entropy_with_logits(logits.float(), truth)


def soft_iou_and_cross_entropy(logits: Tensor, truth: Tensor, total: Total = own_sums) -> Tensor:
    """Compute the Soft-IoU loss plus half the cross-entropy per target pixel; parameters as for `soft_iou`.

    The binary cross-entropy is summed over all pixels of the whole batch and divided by the number of target
    pixels in it, or by 20 where there are fewer. It keeps a gradient where Soft-IoU has none: in batches
    whose masks a network misses completely.

    Examples
    --------
    >>> import torch
    >>> from mclc_gpu.train.losses import soft_iou_and_cross_entropy
    >>> truth = torch.ones(1, 1, 5, 4)
    >>> round(soft_iou_and_cross_entropy(torch.zeros(1, 1, 5, 4), truth).item(), 3)  # 0.476 + 0.5 log 2
    0.823
    """
    logits = logits.float()
    probability = torch.sigmoid(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="sum")
    sums = torch.stack([(probability * truth).sum(), probability.sum(), truth.sum(), entropy])
    both, marked, true, entropy = total(sums).unbind()
    overlap = (both + _SMOOTH) / (marked + true - both + _SMOOTH)
    return 1 - overlap + _ENTROPY * entropy / true.clamp(min=_FEWEST_PIXELS)


def iou_of_images(logits: Tensor, truth: Tensor, total: Total = own_sums) -> Tensor:
    """Compute the mean over images of the Soft-IoU loss of each; parameters as for `soft_iou`.

    `total` is not used: each process returns its own mean, and their gradients are averaged.
    """
    del total
    return (1 - _iou(torch.sigmoid(logits.float()), truth)).mean()


def scale_location(logits: Tensor, truth: Tensor, total: Total = own_sums) -> Tensor:
    """Compute the scale and location sensitive (SLS) loss, a mean over images; parameters as for `soft_iou`.

    Liu, Liu, Zheng, Wang & Fu, "Infrared Small Target Detection with Scale and Location Sensitivity", CVPR
    2024, arXiv:2403.19366. With the soft areas P and T of prediction and truth and v = ((P - T) / 2)^2, their
    variance, the scale term is 1 - w IoU, w = (min(P, T) + v) / (max(P, T) + v). With the distances d and
    angles a of the centroids of prediction and truth, as seen from the upper left corner of the image, the
    location term is 1 - min(d) / max(d) + (2 / pi)^2 (a_P - a_T)^2; images without a target have none. An
    image with several targets has one centroid.

    In the first five epochs, or rounds of the fast schedule, `iou_of_images` stands in for this loss, as
    published: before the background is dark, its probability outweighs the targets in areas and centroids.

    Two details differ from the published code. One is added to the areas in each quotient, so that images
    without a target have a loss. The code takes sums of coordinates instead of their means, so that its
    distances depend on the areas too.

    Examples
    --------
    >>> import torch
    >>> from mclc_gpu.train.losses import scale_location
    >>> truth = torch.zeros(1, 1, 8, 8)
    >>> truth[..., 2:4, 2:4] = 1
    >>> moved = truth.roll(4, dims=3)
    >>> [round(scale_location(200 * mask - 100, truth).item(), 3) for mask in (truth, moved)]
    [0.0, 1.39]
    """
    del total
    probability = torch.sigmoid(logits.float())
    marked, true = probability.sum((1, 2, 3)), truth.sum((1, 2, 3))
    variance = ((marked - true) / 2).square()
    weight = (torch.minimum(marked, true) + variance + _SMOOTH) / (
        torch.maximum(marked, true) + variance + _SMOOTH
    )
    scale = 1 - weight * _iou(probability, truth)
    (near, angle), (true_near, true_angle) = _polar(probability), _polar(truth)
    distance = 1 - torch.minimum(near, true_near) / torch.maximum(near, true_near)
    location = distance + (2 / math.pi) ** 2 * (angle - true_angle).square()
    return (scale + location * (true > 0)).mean()


def _iou(probability: Tensor, truth: Tensor) -> Tensor:
    """Compute the soft IoU of each image, with ones added; [B]."""
    both = (probability * truth).sum((1, 2, 3))
    return (both + _SMOOTH) / ((probability + truth).sum((1, 2, 3)) - both + _SMOOTH)


def _polar(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return distance, in sides of the image, and angle of the centroids of maps [B, 1, H, W]; each [B]."""
    height, width = maps.shape[-2:]
    rows = (torch.arange(height, device=maps.device, dtype=maps.dtype) + 0.5) / height
    columns = (torch.arange(width, device=maps.device, dtype=maps.dtype) + 0.5) / width
    mass = maps.sum((1, 2, 3)).clamp(min=_LEAST_MASS)
    down = (maps.sum((1, 3)) * rows).sum(1) / mass
    right = (maps.sum((1, 2)) * columns).sum(1) / mass
    # Nothing to see: at the corner, where a root has no derivative.
    down, right = down.clamp(min=_LEAST_MASS), right.clamp(min=_LEAST_MASS)
    return torch.hypot(down, right), torch.atan2(down, right)


def partial_cross_entropy(logits: Tensor, truth: Tensor, total: Total = own_sums) -> Tensor:
    """Compute the cross-entropy of the pixels that point labels tell; parameters as for `soft_iou`.

    A labeled pixel is target. Pixels within 10 px of one, along rows and columns, are unknown and do not
    count; all others are background. The loss is half the mean over target pixels plus half that over
    background pixels of the whole batch, since there are ten thousands of these for each of those.

    Examples
    --------
    >>> import torch
    >>> from mclc_gpu.train.losses import partial_cross_entropy
    >>> truth = torch.zeros(1, 1, 40, 40)
    >>> truth[..., 20, 20] = 1
    >>> guess = torch.full_like(truth, -100.0)
    >>> guess[..., 10:31, 10:31] = 100.0  # everything within 10 px
    >>> round(partial_cross_entropy(guess, truth).item(), 6)
    0.0
    """
    entropy = F.binary_cross_entropy_with_logits(logits.float(), truth, reduction="none")
    reach = F.max_pool2d(truth, 2 * UNKNOWN + 1, 1, UNKNOWN)
    target, background = (truth > 0).float(), (reach == 0).float()
    sums = [(entropy * target).sum(), target.sum(), (entropy * background).sum(), background.sum()]
    on_target, targets, off_target, others = total(torch.stack(sums)).unbind()
    return (on_target / targets.clamp(min=1) + off_target / others.clamp(min=1)) / 2


def detector_loss(
    logits: Logits, truth: Tensor, name: str = "soft-iou", total: Total = own_sums, epoch: int = WARM_UP
) -> Tensor:
    """Compute the loss of a network's output in training mode.

    The loss is averaged over the mask and its side outputs (deep supervision: DNANet has 3, UIUNet 6), as
    DNANet was published. UIUNet was published with the sum of cross-entropies, which is 7 times the "bce"
    loss here, a factor that does not change the steps of Adagrad and Adam. For a network that predicts an
    edge (ISNet) its published loss is added: 10 times cross-entropy plus Soft-IoU, against `edge_target`.

    Parameters
    ----------
    logits : Logits
    truth : Tensor [B, 1, H, W], float32
        0 or 1.
    name : str
        A name in `mclc_gpu.train.config.LOSSES`.
    total : callable
        As for `soft_iou`.
    epoch : int
        Counted from 0; in the first `WARM_UP` another loss may stand in, see `WARM_UP_LOSSES`.

    Returns
    -------
    Tensor
        Scalar, float32.
    """
    loss = (WARM_UP_LOSSES if epoch < WARM_UP and name in WARM_UP_LOSSES else LOSSES)[name]
    result: Tensor = torch.stack([loss(mask, truth, total) for mask in logits.masks]).mean()
    if logits.edge is not None:
        target = edge_target(truth)
        edge = soft_iou(logits.edge, target, total)
        result = result + _EDGE_BCE * cross_entropy(logits.edge, target) + edge
    return result


def edge_target(truth: Tensor) -> Tensor:
    """Compute the target of an edge branch: the gradient magnitude of masks [B, 1, H, W], at most 1.

    ISNet was published without the limit. At corners, where the magnitude is sqrt(2), cross-entropy then has
    no minimum and the logits grow without end.
    """
    return gradient_magnitude(truth).clamp(max=1)
