"""What is measured of a network: on labelled images, of mimicry, and its cost."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spiritseg.config import Experiment, Stage
from spiritseg.data.domains import Domains
from spiritseg.data.sampling import StageData
from spiritseg.evaluation.evaluate import EvaluationModule, ExplainedVariance, Scores
from spiritseg.losses import used_losses
from spiritseg.losses.channel_statistics import ChannelStatistics
from spiritseg.losses.loss import LOGITS, Outputs, Statistics
from spiritseg.models import Segmenter
from spiritseg.models.ensemble import stage_teacher
from spiritseg.training.stage import StageModule
from spiritseg.training.trainer import MeasuringProgress, interruptible, lightning_trainer, quiet

__all__ = [
    "HELD_OUT_IMAGES",
    "STATISTICS_IMAGES",
    "explained_variance",
    "layer_statistics",
    "score",
    "stage_figures",
    "teacher_statistics",
]

HELD_OUT_IMAGES = 32  # images a domain; R^2 over their thousands of positions is steady
STATISTICS_IMAGES = 256  # images a domain for statistics of features: thousands of positions each


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
    images = len(data)  # type: ignore[arg-type]  # a map-style data set
    pool = experiment.input.pool
    module = EvaluationModule(network, class_names, experiment.evaluation.threshold, pool)
    loader = DataLoader(
        data,
        batch_size=experiment.evaluation.batch_size,
        collate_fn=list,
        num_workers=experiment.trainer.workers,
    )
    trainer = lightning_trainer(
        experiment.trainer,
        logger=False,
        enable_checkpointing=False,
        callbacks=[MeasuringProgress(images)] if experiment.trainer.progress else [],
    )
    with quiet(), interruptible():
        trainer.test(module, loader, verbose=False)
    return module.scores


def layer_statistics(
    teacher: Segmenter, layers: Collection[str], data: Sequence[Dataset[Any]], device: torch.device
) -> dict[str, Statistics]:
    """Compute mean and standard deviation of a teacher's layers, per channel.

    Args:
        teacher: the network that is distilled from.
        layers: as for `Segmenter.outputs`.
        data: data sets of prepared training images, not augmented; of each at most 256, evenly
            spaced, are looked at.
        device: where to compute.

    Returns:
        By layer, (C,) mean and (C,) standard deviation over all positions of these images.
    """
    found = {name: ChannelStatistics() for name in layers}
    for outputs in _outputs(teacher, layers, [_sample(one) for one in data], device):
        for name, statistics in found.items():
            statistics.update(outputs[name])
    return {name: statistics.compute() for name, statistics in found.items()}


def _sample(data: Dataset[Any]) -> Dataset[Any]:
    count = len(data)  # type: ignore[arg-type]  # a map-style data set
    if count <= STATISTICS_IMAGES:
        return data
    return torch.utils.data.Subset(
        data, [i * count // STATISTICS_IMAGES for i in range(STATISTICS_IMAGES)]
    )


@torch.no_grad()  # what inference mode moves to a device can never train again
def explained_variance(module: StageModule, data: Dataset[Any], device: torch.device) -> float:
    """Measure how much of the variance of a teacher's layers a mimic explains, R^2.

    Args:
        module: A stage with mimicry, or another loss that compares maps; adapters and statistics
            are used as in training.
        data: Prepared held-out images of one domain; the first 32 are used.
        device: Where to compute.

    Returns:
        1 for a perfect mimic, 0 for one as good as the held-out images' mean features; the
        mean over the pairs of layers, where there are several.
    """
    assert module.teacher is not None, "mimicry needs a teacher"
    metrics: dict[tuple[str, str], ExplainedVariance] = {}
    count = min(len(data), HELD_OUT_IMAGES)  # type: ignore[arg-type]  # a map-style data set
    kept = torch.utils.data.Subset(data, range(count))
    module.to(device).eval()
    students = _outputs(module.network, module.needs, [kept], device)
    teachers = _outputs(module.teacher, module.teacher_needs, [kept], device)
    nothing = torch.empty(0, device=device)
    for student, teacher in zip(students, teachers, strict=True):
        outputs = Outputs(nothing, nothing, nothing, student, teacher)
        for loss, term in module.comparing():
            for layer, pair in term.compared(outputs).items():
                metrics.setdefault((loss, layer), ExplainedVariance().to(device)).update(*pair)
    return sum(float(metric.compute()) for metric in metrics.values()) / len(metrics)


@torch.no_grad()
def _outputs(
    network: Segmenter, layers: Collection[str], data: Sequence[Dataset[Any]], device: torch.device
) -> Iterator[dict[str, Tensor]]:
    network.to(device).eval()
    for one in data:
        for row in range(len(one)):  # type: ignore[arg-type]  # a map-style data set
            image: Tensor = one[row]["image"]
            images = image[None].to(device).contiguous(memory_format=torch.channels_last)
            yield network.outputs(images, layers)


def teacher_statistics(
    stage: Stage, networks: dict[str, Segmenter], data: StageData, device: torch.device
) -> dict[str, Statistics] | None:
    """Compute the statistics of its teacher's layers that a stage needs; None for none.

    Args:
        stage: its losses and teachers are read.
        networks: all networks by name.
        data: the stage's images.
        device: where to compute.
    """
    teacher = stage_teacher(stage, networks)
    used = used_losses(stage.losses)
    layers = frozenset[str]().union(*(loss.statistics(options) for _, loss, options in used))
    if not layers or teacher is None:
        return None
    return layer_statistics(teacher, layers, data.prepared(), device)


def stage_figures(
    module: StageModule, experiment: Experiment, domains: Domains, device: torch.device
) -> dict[str, Any]:
    """Measure what a trained stage reports: explained variance, and val where it has logits.

    Args:
        module: of the stage, trained.
        experiment: its evaluation and trainer fields are read.
        domains: the images.
        device: where to measure explained variance.
    """
    figures: dict[str, Any] = {}
    if any(module.comparing()):
        figures["explained variance"] = {
            domain: explained_variance(module, held_out, device)
            for domain, held_out in domains.held_out().items()
        }
    if LOGITS in module.needs:
        val, classes = domains.evaluation("val"), list(domains.classes.names)
        figures["val"] = score(module.network, val, classes, experiment).as_dict()
    return figures
