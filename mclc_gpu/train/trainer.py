"""Steps of training."""

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mclc_gpu.distributed import Ranks
from mclc_gpu.errors import InputError
from mclc_gpu.networks.blocks import PooledBatchNorm2d
from mclc_gpu.networks.zoo import NETWORKS, build
from mclc_gpu.train.config import OPTIMIZERS, TrainConfig
from mclc_gpu.train.data import PAPER_PLACING, Placing, Plan, TrainingSet, philox, plan_epoch, vary_gain
from mclc_gpu.train.losses import detector_loss
from mclc_gpu.train.mining import false_alarms
from mclc_gpu.train.schedule import (
    Budget,
    Stretch,
    budget_of,
    crops_of_step,
    highest,
    make_schedule,
)

_MINING_SHARE = 0.05  # of the run's pixels, that one search for false alarms may run over
_ZOOMS, _SEARCHES = 1 << 62, 1 << 63  # first numbers of generators beside those of the epochs
_TIMED_STEPS = 8
_FAST_BETAS = (0.9, 0.99)


class MovingAverage:
    """Exponential moving average of a network's weights and statistics.

    The decay of update n, counted from 0, is min(decay, (1 + n) / (10 + n)), so that the first weights are
    soon forgotten. `torch.optim.swa_utils.AveragedModel` makes the host wait for a GPU at every update.

    Parameters
    ----------
    network : nn.Module
    decay : float, 0..1

    Attributes
    ----------
    network : nn.Module
        The average, in evaluation mode.
    updates : int
        Updates so far.
    """

    def __init__(self, network: Any, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        pairs = zip(self.network.state_dict().values(), network.state_dict().values(), strict=True)
        self._pairs = [(own, source) for own, source in pairs if own.is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights that the network has now."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        own, source = (list(side) for side in zip(*self._pairs, strict=True))
        torch._foreach_lerp_(own, source, 1 - decay)


class Trainer:
    """Network and optimizer on one device; the gradients of several processes are averaged.

    Parameters
    ----------
    config : TrainConfig
    data : TrainingSet
    ranks : Ranks
    begun : Budget, optional
        See `make_schedule`.
    initial : mapping of str to Tensor, optional
        Weights that training starts from, of the network that `config` names; others are drawn.

    Attributes
    ----------
    schedule : Schedule
    network : Detector
        The network in training.
    result : Detector
        The detector that training makes: the moving average of the weights, or `network` itself.
    hard : Tensor [H, 2], int64
        False alarms that crops show, see `false_alarms`.

    Raises
    ------
    InputError
        As `share_of_batch` and `make_schedule`.

    Notes
    -----
    Seeds torch's global generator and draws the initial weights from it.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: TrainingSet,
        ranks: Ranks,
        begun: Budget | None = None,
        initial: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.config, self.data, self.ranks = config.resolved(), data, ranks
        config = self.config
        share_of_batch(config, ranks)
        least = NETWORKS[config.network].smallest_batch
        self.schedule = make_schedule(config, len(data.samples), least, ranks.world, begun)
        fast = config.fast if config.schedule == "fast" else None
        self.placing, self.epoch = PAPER_PLACING, 0
        torch.manual_seed(config.seed % 2**64)
        network: Any = build(config.network, config.channels)
        self.average: MovingAverage | None = None
        pooled = [name for name, module in network.named_modules() if isinstance(module, PooledBatchNorm2d)]
        if fast is not None:
            self.placing = Placing(fast.target_share, fast.margin, fast.hard_share, fast.paste_share)
            network.set_prior(fast.prior)
        if initial is not None:
            network.load_state_dict(initial, strict=False)
        if ranks.world > 1 and ranks.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        self.network = network.to(ranks.device, memory_format=torch.channels_last)
        self.pooled = [self.network.get_submodule(name) for name in pooled]
        self.optimizer = make_optimizer(config, self.network)
        if fast is not None and fast.average:
            self.average = MovingAverage(self.network, fast.average)
        self.hard = torch.zeros(0, 2, dtype=torch.int64)
        self.model: Callable[[Tensor], Any] = self.network
        if ranks.world > 1:
            self.model = DistributedDataParallel(self.network, static_graph=True)
        if config.compile is not None:
            # Only for training: validation runs on many sizes and would be compiled for each.
            self.model = torch.compile(self.model, mode=config.compile, dynamic=False)

    @property
    def result(self) -> Any:
        """Return the detector that training makes."""
        return self.network if self.average is None else self.average.network

    def run_epoch(self, epoch: int) -> tuple[float, float, int]:
        """Train for one epoch or round. The host does not wait for the device between steps.

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
        config, ranks, self.epoch = self.config, self.ranks, epoch
        if self.schedule.mines(epoch):
            self._mine(epoch)
        # Dropout is seeded by the epoch, so that a resumed run continues like one that was not interrupted.
        entropy = np.random.SeedSequence([config.seed % 2**64, epoch, ranks.rank])
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]))
        stretches = self.schedule.stretches(epoch)
        steps = sum(len(stretch.rates) for stretch in stretches)
        crops = sum(len(stretch.rates) * stretch.crops for stretch in stretches)
        plan = plan_epoch(len(self.data.samples), crops, config.seed, epoch, self.placing, self.hard)
        sums = torch.zeros(4, dtype=torch.float64, device=ranks.device)
        zooms = philox(config.seed, _ZOOMS + epoch)
        first = 0
        for stretch in stretches:
            length = len(stretch.rates) * stretch.crops
            sums += self.run_stretch(stretch, plan[first : first + length], zooms)
            first += length
        loss, both, either, marked = ranks.total(sums).tolist()
        return loss / (steps * ranks.world), both / either if either else math.nan, int(marked)

    def run_stretch(self, stretch: Stretch, plan: Plan, zooms: np.random.Generator) -> Tensor:
        """Train on the crops of a plan; return the sum of what `step` returns."""
        config, ranks, steps = self.config, self.ranks, len(stretch.rates)
        share = stretch.crops // ranks.world
        own = torch.arange(len(plan)).view(steps, ranks.world, share)[:, ranks.rank].flatten()
        self.network.train()
        if stretch.frozen:
            for norm in self.pooled:
                norm.eval()
        sides, gain = None, 0.0
        if config.schedule == "fast":
            gain = config.fast.gain_jitter
            if jitter := config.fast.scale_jitter:
                zoom = np.exp(zooms.uniform(-jitter, jitter, steps))
                sides = np.rint(stretch.side * zoom).astype(int).clip(min=16).tolist()
        sums = torch.zeros(4, dtype=torch.float64, device=ranks.device)
        batches = self.data.batches(plan[own], share, stretch.side, self.placing, sides)
        for rate, (crops, truth) in zip(stretch.rates, batches, strict=True):
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            sums += self.step(vary_gain(crops, gain) if gain else crops, truth)
        return sums

    def step(self, crops: Tensor, truth: Tensor) -> Tensor:
        """Train on one batch; return loss and pixels of intersection, union and prediction, float64 [4]."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(crops.device.type, torch.bfloat16, enabled=self.config.amp):
            logits = self.model(crops.contiguous(memory_format=torch.channels_last))
        assert self.config.loss is not None
        loss = detector_loss(logits, truth, self.config.loss, self.ranks.total_with_gradient, self.epoch)
        loss.backward()
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        marked, true = logits.masks[0].detach() > 0, truth > 0
        counts = ((marked & true).sum(), (marked | true).sum(), marked.sum())
        return torch.stack([loss.detach().double(), *(count.double() for count in counts)])

    def state(self) -> dict[str, Any]:
        """Return what resuming needs besides the weights of `result`."""
        state: dict[str, Any] = {"optimizer": self.optimizer.state_dict()}
        if self.average is not None:
            state |= {"weights": self.network.state_dict(), "updates": self.average.updates}
        if len(self.hard):
            state["hard"] = self.hard
        return state

    def restore(self, weights: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Restore the weights of `result` and what `state` returned.

        Raises
        ------
        KeyError, RuntimeError, TypeError, ValueError
            If they are those of another run.
        """
        if self.average is None:
            self.network.load_state_dict(weights)
        else:
            self.network.load_state_dict(state["weights"])
            self.average.network.load_state_dict(weights)
            self.average.updates = state["updates"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.hard = state.get("hard", self.hard)

    def _mine(self, epoch: int) -> None:
        """Replace the false alarms by those of the network as it is, on images for 5 % of the budget."""
        data, ranks = self.data, self.ranks
        order = philox(self.config.seed, _SEARCHES + epoch).permutation(len(data.samples)).tolist()
        most = max(1, int(_MINING_SHARE * self.schedule.pixels / data.pixels * len(order)))
        ranks.broadcast_buffers(self.result)
        found = false_alarms(self.result, data, ranks.share(order[:most]), self.config.amp)
        self.hard = torch.unique(torch.cat(ranks.gather(found)), dim=0)  # sorted, whoever found them


def make_optimizer(config: TrainConfig, network: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of resolved settings.

    In the fast schedule weights of more than one dimension decay, and Adam and AdamW forget squares of
    gradients faster than usual (0.99 instead of 0.999), since a run has few thousand steps.
    """
    assert config.optimizer is not None
    make = OPTIMIZERS[config.optimizer]
    rate = highest(config)
    if config.schedule == "paper":
        made: torch.optim.Optimizer = make(network.parameters(), lr=rate)
        return made
    weights = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [
        {"params": weights, "weight_decay": config.fast.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    betas = {"betas": _FAST_BETAS} if config.optimizer in ("adam", "adamw") else {}
    made = make([group for group in groups if group["params"]], lr=rate, **betas)
    return made


def measure_budget(config: TrainConfig, data: TrainingSet, ranks: Ranks) -> Budget:
    """Measure the speed of training and return the budget that takes `config.minutes`.

    Some steps of each stage run on a network that is thrown away. A twentieth of the time is left for
    validation, checkpoints and the search for false alarms.
    """
    assert config.minutes is not None
    seconds = 60 * config.minutes
    trainer = Trainer(replace(config, minutes=None, mpixels=1.0), data, ranks)
    config, least = trainer.config, NETWORKS[config.network].smallest_batch
    each = 0.0  # seconds per pixel
    for side, share in config.fast.parsed_stages():
        crops = crops_of_step(config, side, least, ranks.world)
        rates = (0.0,) * _TIMED_STEPS
        plan = plan_epoch(len(data.samples), crops * _TIMED_STEPS, config.seed, 0, trainer.placing)
        stretch = Stretch(side, crops, rates)
        for timed in (False, True):  # the first run compiles or chooses algorithms
            started = time.perf_counter()
            trainer.run_stretch(stretch, plan, philox(config.seed, _ZOOMS)).sum().item()
            if timed:
                each += share * (time.perf_counter() - started) / stretch.pixels
    pixels = max(1, int(0.95 * seconds / each))
    return budget_of(config, ranks.gather(pixels)[0], least, ranks.world)


def share_of_batch(config: TrainConfig, ranks: Ranks) -> int:
    """Return the crops per step of one process in the schedule "paper", in "fast" the smallest batch.

    Raises
    ------
    InputError
        If the processes cannot share a batch evenly, or the network needs larger batches.
    """
    least = NETWORKS[config.network].smallest_batch
    if config.schedule == "fast":
        return least
    share, rest = divmod(config.batch_size, ranks.world)
    if rest or not share:
        raise InputError(
            f"batch_size {config.batch_size}: {ranks.world} processes cannot share it evenly; "
            f"use a multiple of {ranks.world}"
        )
    if share < least:
        raise InputError(
            f"batch_size {config.batch_size}: {config.network} trains on batches of {least} images or more "
            f"in each process; use {least * ranks.world} or more"
        )
    return share
