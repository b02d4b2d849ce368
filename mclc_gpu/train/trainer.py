"""Losses, settings and steps of training."""

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


class Trainer:
    """A network and its optimiser on one device. With several processes, their gradients are averaged."""

    def __init__(self, config: TrainConfig, data: TrainingSet, ranks: Ranks) -> None:
        """Raises InputError as `share_of_batch` does. Draws from torch's global generator."""
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
            # Its own copy of the code: validation runs on many sizes and would be compiled for each.
            self.model = torch.compile(self.model, mode=config.compile, dynamic=False)

    def run_epoch(self, epoch: int) -> tuple[float, float, int]:
        """One epoch, counted from 0: its mean loss, IoU of the crops, and pixels marked (probability > 0.5).

        The host does not wait for the device between steps.
        """
        config, device, world = self.config, self.ranks.device, self.ranks.world
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr_of(epoch)
        # Dropout depends on the epoch, so that a resumed run continues as if it had not stopped.
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
        """One step; float64 [4]: loss, and pixels of intersection, union and prediction."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(crops.device.type, torch.bfloat16, enabled=self.config.amp):
            answer = self.model(crops.contiguous(memory_format=torch.channels_last))
        loss = detector_loss(answer, truth, self.config.loss, self.ranks.total_with_gradient)
        loss.backward()
        self.optimizer.step()
        marked, true = answer.masks[0].detach() > 0, truth > 0
        counts = ((marked & true).sum(), (marked | true).sum(), marked.sum())
        return torch.stack([loss.detach().double(), *(count.double() for count in counts)])


def share_of_batch(config: TrainConfig, ranks: Ranks) -> int:
    """Crops a step of one process.

    Raises:
        InputError: The processes cannot share a batch evenly, or the network needs more images at once.
    """
    share, rest = divmod(config.batch_size, ranks.world)
    if rest or not share:
        raise InputError(
            f"batch_size {config.batch_size}: {ranks.world} processes cannot share it evenly; "
            "use a multiple of their number"
        )
    least = NETWORKS[config.network].smallest_batch
    if share < least:
        raise InputError(
            f"batch_size {config.batch_size}: {config.network} trains on {least} images or more at once in "
            f"each of {ranks.world} processes; use {least * ranks.world} or more"
        )
    return share
