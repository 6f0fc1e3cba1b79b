"""What is measured of a network: on labelled images, of mimicry, and its cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spiritseg.config import Experiment
from spiritseg.evaluation.evaluate import EvaluationModule, Scores
from spiritseg.evaluation.explained_variance import ExplainedVariance
from spiritseg.losses.mimicry import ChannelStatistics, standardise
from spiritseg.models import Segmenter
from spiritseg.training.fit import lightning_trainer, quiet
from spiritseg.training.terms import Statistics

__all__ = ["explained_variance", "feature_statistics", "score"]

_HELD_OUT = 32  # images a domain; R^2 over their thousands of positions is steady


def score(
    network: Segmenter, data: Dataset[Any], class_names: list[str], experiment: Experiment
) -> Scores:
    """Measure a network on labelled images.

    Args:
        network: any segmenter.
        data: prepared images with their labels and indices.
        class_names: K names.
        experiment: its evaluation and trainer fields are read.

    Returns:
        The scores over all images, and per image.
    """
    module = EvaluationModule(network, class_names, experiment.evaluation.threshold)
    loader = DataLoader(
        data,
        batch_size=experiment.evaluation.batch_size,
        collate_fn=list,
        num_workers=experiment.trainer.workers,
    )
    trainer = lightning_trainer(experiment.trainer, logger=False, enable_checkpointing=False)
    with quiet():
        trainer.test(module, loader, verbose=False)
    return module.scores


def feature_statistics(
    teacher: Segmenter, data: Sequence[Dataset[Any]], device: torch.device
) -> Statistics:
    """Compute mean and standard deviation of a teacher's features, per channel.

    Args:
        teacher: the network that is distilled from.
        data: data sets of prepared training images, not augmented.
        device: where to compute.

    Returns:
        (C,) mean and (C,) standard deviation, over all positions of all images.
    """
    statistics = ChannelStatistics()
    for features in _features(teacher, data, device):
        statistics.update(features)
    return statistics.compute()


def explained_variance(
    network: Segmenter,
    teacher: Segmenter,
    data: Dataset[Any],
    device: torch.device,
    statistics: Statistics | None,
    centre: bool,
) -> float:
    """Say how much of the variance of a teacher's features a network explains, R^2.

    Args:
        network: whose extractor mimics.
        teacher: what is mimicked.
        data: prepared held-out images of one domain; the first 32 are used.
        device: where to compute.
        statistics: of the teacher's features, where mimicry standardises them.
        centre: whether it subtracts their mean.

    Returns:
        1 for a perfect mimic, 0 for one as good as the held-out images' mean features.
    """
    metric = ExplainedVariance().to(device)
    count = min(len(data), _HELD_OUT)  # type: ignore[arg-type]  # a map-style data set
    kept = torch.utils.data.Subset(data, range(count))
    pairs = zip(_features(network, [kept], device), _features(teacher, [kept], device), strict=True)
    for mimicked, wanted in pairs:
        if statistics is not None:
            mean, std = (s.to(device) for s in statistics)
            wanted = standardise(wanted, mean, std, centre=centre)
        metric.update(mimicked, wanted)
    return float(metric.compute())


@torch.inference_mode()
def _features(network: Segmenter, data: Sequence[Dataset[Any]], device: torch.device) -> Any:
    network.to(device).eval()
    for one in data:
        for row in range(len(one)):  # type: ignore[arg-type]  # a map-style data set
            image: Tensor = one[row]["image"]
            images = image[None].to(device).contiguous(memory_format=torch.channels_last)
            yield network.extractor(images)
