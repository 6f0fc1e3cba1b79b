"""Optimizers and learning-rate schedules of a stage."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from spiritseg.config import Optimizer

__all__ = ["build_optimizer", "build_schedule"]


def build_optimizer(config: Optimizer, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Make the optimizer of a stage.

    Args:
        config: which one, with its rates.
        parameters: what trains.

    Returns:
        SGD with an L2 penalty, Adam with one, or AdamW with decoupled weight decay.
    """
    parameters = list(parameters)
    if config.name == "sgd":
        return torch.optim.SGD(
            parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(parameters, lr=config.lr, weight_decay=config.weight_decay)


def build_schedule(
    config: Optimizer, optimizer: torch.optim.Optimizer, steps: int
) -> LRScheduler | None:
    """Make the learning-rate schedule of a stage, stepped once a training step.

    Args:
        config: which one.
        optimizer: what it steers.
        steps: length of the stage in steps, when it runs to its bound.

    Returns:
        A schedule, or None where the rate is constant.
    """
    if config.schedule == "constant":
        return None
    if config.schedule == "one_cycle":
        return OneCycleLR(
            optimizer,
            max_lr=config.lr,
            total_steps=steps + 1,
            pct_start=_warmup(config, steps),
            cycle_momentum=False,
        )
    return LambdaLR(optimizer, lambda step: max(1 - step / steps, 0.0) ** 0.9)


def _warmup(config: Optimizer, steps: int) -> float:
    """Return the share of the steps in which the rate rises.

    One that ends at step 0 exactly would be divided by: it ends just behind it, so that the first
    step has the lowest rate, as with any longer one.
    """
    return config.warmup * (1 + 1e-9) if config.warmup * (steps + 1) == 1 else config.warmup
