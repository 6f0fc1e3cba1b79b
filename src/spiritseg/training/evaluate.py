"""Measuring a run's student again, or a bundle's on other images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spiritseg.data.datasets import EvalData
from spiritseg.data.domains import Split, open_target
from spiritseg.student import load
from spiritseg.training.allocator import freed_memory_kept
from spiritseg.training.measure import score

__all__ = ["evaluate"]


def evaluate(
    run: str | Path,
    overrides: Mapping[str, Any] | None = None,
    split: Split = "test",
    trust: bool = False,
    *,
    skip_bad: bool = False,
) -> dict[str, Any]:
    """Measure a run's student again, or a bundle's on other images.

    Only the images of the split are opened: neither the training images' number nor their size
    matters.

    Args:
        run: a run's folder, or a bundle.
        overrides: dotted fields of its experiment, such as ``{"target.root": DIR}``; a bundle
            away from its run does not know where its images were.
        split: test or val.
        trust: import your own classes that the bundle names.
        skip_bad: Whether unreadable images are left out, as input.skip_bad.

    Returns:
        mIOU, HP-Acc, Var, dataset mIoU and IoU per class, in [0, 1]; ``images``, how many were
        measured, and ``skipped``, the unreadable ones.

    Raises:
        BundleError: the bundle cannot be read, or is of your own classes and trust was not given.
        SpiritsegError: for anything else that a user can mend.
    """
    student = load(run, trust=trust)
    bad = {"input.skip_bad": True} if skip_bad else {}
    experiment = student.experiment({**(overrides or {}), **bad})
    images = open_target(experiment.target, experiment.input, split)
    images.classes.require(student.info.classes)
    data = EvalData(images, experiment.input)
    with freed_memory_kept():
        scores = score(student.network, data, list(images.classes.names), experiment)
    return {**scores.as_dict(), "skipped": images.skipped}
