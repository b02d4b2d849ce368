"""Losses and the steps of training."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mclc_gpu.distributed import Ranks
from mclc_gpu.errors import InputError
from mclc_gpu.networks.blocks import Logits
from mclc_gpu.networks.isnet import gradient_magnitude
from mclc_gpu.networks.zoo import NETWORKS, build
from mclc_gpu.train.config import LOSSES, OPTIMIZERS, TrainConfig
from mclc_gpu.train.data import TrainingSet, plan_epoch

Total = Callable[[Tensor], Tensor]  # adds up sums over the processes that share a batch

_SMOOTH = 1.0
_EDGE_BCE = 10.0  # weight of the edge's cross-entropy in the published training of ISNet


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
    >>> from mclc_gpu.train.trainer import soft_iou
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


def detector_loss(logits: Logits, truth: Tensor, name: str = "soft-iou", total: Total = own_sums) -> Tensor:
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

    Returns
    -------
    Tensor
        Scalar, float32.
    """
    loss = LOSSES[name]
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


class Trainer:
    """Network and optimizer on one device; the gradients of several processes are averaged.

    Parameters
    ----------
    config : TrainConfig
    data : TrainingSet
    ranks : Ranks

    Raises
    ------
    InputError
        As `share_of_batch`.

    Notes
    -----
    Seeds torch's global generator and draws the initial weights from it.
    """

    def __init__(self, config: TrainConfig, data: TrainingSet, ranks: Ranks) -> None:
        self.config, self.data, self.ranks = config, data, ranks
        self.share = share_of_batch(config, ranks)
        torch.manual_seed(config.seed % 2**64)
        network: Any = build(config.network, config.channels)
        if ranks.world > 1 and ranks.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        self.network = network.to(ranks.device, memory_format=torch.channels_last)
        self.optimizer = OPTIMIZERS[config.optimizer](self.network.parameters(), lr=config.first_lr)
        self.model: Callable[[Tensor], Any] = self.network
        if ranks.world > 1:
            self.model = DistributedDataParallel(self.network, static_graph=True)
        if config.compile is not None:
            # Only for training: validation runs on many sizes and would be compiled for each.
            self.model = torch.compile(self.model, mode=config.compile, dynamic=False)

    def run_epoch(self, epoch: int) -> tuple[float, float, int]:
        """Train for one epoch. The host does not wait for the device between steps.

        Parameters
        ----------
        epoch : int
            Counted from 0.

        Returns
        -------
        loss : float
            Mean over the steps and processes.
        crop_iou : float
            IoU over all crops; NaN where neither truth nor prediction has a pixel.
        marked : int
            Pixels with a probability above 0.5.
        """
        config, device, world = self.config, self.ranks.device, self.ranks.world
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr_of(epoch)
        # Dropout is seeded by the epoch, so that a resumed run continues like one that was not interrupted.
        entropy = np.random.SeedSequence([config.seed % 2**64, epoch, self.ranks.rank])
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]))
        images = len(self.data.samples)
        steps = -(-images // config.batch_size)
        plan = plan_epoch(images, steps * config.batch_size, config.seed, epoch)
        own = torch.arange(len(plan)).view(steps, world, self.share)[:, self.ranks.rank].flatten()
        self.network.train()
        sums = torch.zeros(4, dtype=torch.float64, device=device)
        for crops, truth in self.data.batches(plan[own], self.share, config.size):
            sums += self.step(crops, truth)
        loss, both, either, marked = self.ranks.total(sums).tolist()
        return loss / (steps * world), both / either if either else math.nan, int(marked)

    def step(self, crops: Tensor, truth: Tensor) -> Tensor:
        """Train on one batch; return loss and pixels of intersection, union and prediction, float64 [4]."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(crops.device.type, torch.bfloat16, enabled=self.config.amp):
            logits = self.model(crops.contiguous(memory_format=torch.channels_last))
        loss = detector_loss(logits, truth, self.config.loss, self.ranks.total_with_gradient)
        loss.backward()
        self.optimizer.step()
        marked, true = logits.masks[0].detach() > 0, truth > 0
        counts = ((marked & true).sum(), (marked | true).sum(), marked.sum())
        return torch.stack([loss.detach().double(), *(count.double() for count in counts)])


def share_of_batch(config: TrainConfig, ranks: Ranks) -> int:
    """Return the crops per step of one process.

    Raises
    ------
    InputError
        If the processes cannot share a batch evenly, or the network needs larger batches.
    """
    share, rest = divmod(config.batch_size, ranks.world)
    if rest or not share:
        raise InputError(
            f"batch_size {config.batch_size}: {ranks.world} processes cannot share it evenly; "
            f"use a multiple of {ranks.world}"
        )
    least = NETWORKS[config.network].smallest_batch
    if share < least:
        raise InputError(
            f"batch_size {config.batch_size}: {config.network} trains on batches of {least} images or more "
            f"in each process; use {least * ranks.world} or more"
        )
    return share
