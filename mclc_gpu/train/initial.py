"""Weights that training starts from: those of a checkpoint, or of torchvision for a backbone."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mclc_gpu.detect.checkpoint import load_checkpoint
from mclc_gpu.errors import InputError
from mclc_gpu.networks.backbones import read_backbone
from mclc_gpu.networks.zoo import NETWORKS, build
from mclc_gpu.train.config import TrainConfig


class Initial(NamedTuple):
    """Weights that training starts from, by name, and their file with its digest."""

    weights: Mapping[str, Tensor]
    file: Path
    digest: str


def read_initial(checkpoint: Path | None, backbone: Path | None, config: TrainConfig) -> Initial | None:
    """Read the weights that training starts from.

    Parameters
    ----------
    checkpoint : Path, optional
        Checkpoint of the network of `config`, which gives all weights.
    backbone : Path, optional
        File of torchvision, which gives those of the network's backbone.
    config : TrainConfig

    Returns
    -------
    Initial or None
        None where neither is given.

    Raises
    ------
    InputError
        If a file cannot be used for this network, or both are given.
    """
    weights: Mapping[str, Tensor]
    if checkpoint is not None and backbone is not None:
        raise InputError(f"{backbone}: the checkpoint {checkpoint} holds a backbone; give one of the two")
    if checkpoint is not None:
        trained = load_checkpoint(checkpoint, "cpu")
        made, wanted = (trained.name, trained.in_channels), (config.network, config.channels)
        if made != wanted:
            raise InputError(
                f"{checkpoint}: holds {made[0]} with {made[1]} channels, not {wanted[0]} with {wanted[1]}; "
                "give a checkpoint of the network to train"
            )
        file, weights = checkpoint, trained.network.state_dict()
    elif backbone is not None:
        with torch.random.fork_rng(devices=[]):
            network = build(config.network, config.channels)
        file, weights = backbone, read_backbone(network, backbone)
    else:
        return None
    return Initial(weights, file, hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest())


def backbone_origin(initial: Initial | None, config: TrainConfig) -> str | None:
    """Describe where the first weights of the backbone come from; None for a network without one."""
    if (pretrained := NETWORKS[config.network].pretrained) is None:
        return None
    if initial is None:
        return f"drawn at random (Xavier); --backbone-weights takes those of torchvision's {pretrained}"
    return f"weights of {initial.file}"
