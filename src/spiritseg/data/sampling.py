"""Which images a stage sees, in which order: target and proximity mixed at a ratio.

Enhanced Spirit Distillation (Wu et al., arXiv:2103.13733, section III-C) trains stage 1 on both
domains at r = |Dt| : |Dp|. The order and every augmentation are functions of (seed, stage,
epoch, index) alone: neither the number of workers or processes nor earlier draws matter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from spiritseg.config import Experiment, Input, Stage
from spiritseg.data.augment import View, draw_view, finish, to_float
from spiritseg.data.cache import Budget, Cache
from spiritseg.data.datasets import EvalData, LabelledImages, UnlabelledImages
from spiritseg.errors import ConfigError
from spiritseg.geometry import max_pool
from spiritseg.randomness import derive_seed

__all__ = ["PROXIMITY", "TARGET", "StageBatches", "StageData", "draws", "epoch_length"]

TARGET, PROXIMITY = 0, 1

Key = tuple[int, int, int]  # (domain, index, view): what an augmented image is a function of


def draws(
    n_target: int, n_proximity: int, ratio: float, seed: int, epoch: int, length: int = 0
) -> list[Key]:
    """Draw the images of one epoch.

    Each draw takes a target image with probability r / (1 + r), else a proximity one. Each domain
    is gone through in one permutation of its images after the other, across epochs too: no image
    comes again before all others of its domain.

    Args:
        n_target: number of target images; 0 for proximity only.
        n_proximity: number of proximity images; 0 for target only.
        ratio: r = |Dt| : |Dp|, target to proximity images; 0 for proximity only.
        seed: seed of the order.
        epoch: epoch from 0.
        length: draws per epoch, the same in every epoch; 0 for `epoch_length`.

    Returns:
        (domain, index, turn) of each draw. Domain 0 is target, 1 proximity; turn counts how often
        the domain was gone through before.

    Raises:
        ConfigError: for a negative ratio, or if there is nothing to draw from.
    """
    share = _target_share(n_target, n_proximity, ratio)
    length = length or epoch_length(n_target, n_proximity, ratio)
    done = sum(_targets_in(share, seed, before, length) for before in range(epoch))
    past = [done, epoch * length - done]
    sizes = (n_target, n_proximity)
    found = []
    for domain in _domains(share, seed, epoch, length):
        turn, place = divmod(past[domain], sizes[domain])
        found.append((domain, _permutation(sizes[domain], seed, domain, turn)[place], turn))
        past[domain] += 1
    return found


def epoch_length(n_target: int, n_proximity: int, ratio: float) -> int:
    """Return how many draws show each image once (of two domains: each target image, on average).

    With r = |Dt| : |Dp| that is n_target (1 + 1/r), rounded.
    """
    share = _target_share(n_target, n_proximity, ratio)
    if share in (0.0, 1.0):
        return n_target if share else n_proximity
    return round(n_target * (1 + 1 / ratio))


class StageData(Dataset[dict[str, Any]]):
    """Augmented training views of a stage's images, by key (domain, index, view).

    The augmentation is a function of (seed, stage, view, domain, index). A sample is a dict of
    ``image`` (3, c/p, c/p) float32 in [0, 1], after the max-pool; ``labels`` (c, c) int64, 255
    if ignored or unlabelled; ``plain``, the image before its colours change, if the stage's
    teacher sees that; ``valid`` (c, c) bool, False on padding; ``domain``, ``index`` and ``view``.
    Views that come round again (stage.num_views) are kept while input.cache_mib lasts.

    Args:
        images: target and proximity images; None for those that the stage does not use.
        stage: ratio, views, jitter, scale and fourier.
        experiment: seed and input.
        name: the stage's name, part of every seed.
        styles: images whose low-frequency amplitudes target images take (stage.fda_prob).

    Raises:
        ConfigError: if there is no image, or the ratio cannot be drawn.
    """

    def __init__(
        self,
        images: tuple[LabelledImages | None, UnlabelledImages | None],
        stage: Stage,
        experiment: Experiment,
        name: str,
        styles: UnlabelledImages | None = None,
    ) -> None:
        self.target, self.proximity = images
        self.styles = styles
        self.fourier = stage.fda_prob if styles is not None else 0.0
        self.input = stage_input(experiment.input, stage)
        self.seed = experiment.seed
        self.name = name
        self.views = stage.num_views
        self.plain = stage.teacher_view == "plain"
        self.ratio = stage.ratio
        _target_share(*self.counts, self.ratio)  # refuses what cannot be drawn
        opened = self.target if self.target is not None else self.proximity
        budget = opened.cache.budget if opened is not None and self.views else Budget(0)
        self.cache: Cache[View] = Cache(budget, _cloned)

    @property
    def counts(self) -> tuple[int, int]:
        """Numbers of target and proximity images."""
        return len(self.target or ()), len(self.proximity or ())

    def __len__(self) -> int:
        return epoch_length(*self.counts, self.ratio)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        domain, index, view = key
        drawn = self.cache(key, lambda: self._draw(key))
        image, labels, valid = finish(drawn, self.input)
        sample = {"image": image, "labels": labels, "valid": valid}
        if self.plain:
            sample["plain"] = image if drawn.plain is None else to_float(drawn.plain)
        return {**sample, "domain": domain, "index": index, "view": view}

    def keys(self, epoch: int, length: int = 0) -> list[Key]:
        """Return (domain, index, view) of each draw of an epoch; see `draws`.

        The view is the image's turn, modulo the stage's views, if it has any.
        """
        seed = derive_seed(self.seed, self.name, "order")
        drawn = draws(*self.counts, self.ratio, seed, epoch, length)
        return [(d, index, turn % self.views if self.views else turn) for d, index, turn in drawn]

    def prepared(self) -> list[EvalData]:
        """Return the images of each domain whole, not augmented."""
        found = (images for images in (self.target, self.proximity) if images is not None)
        return [EvalData(images, self.input) for images in found if len(images)]

    def _draw(self, key: Key) -> View:
        """Draw a view and max-pool its image."""
        domain, index, view = key
        images = self.proximity if domain == PROXIMITY else self.target
        assert images is not None, "only domains with images are drawn"
        sample = images[index]
        image, labels = (sample, None) if isinstance(sample, Tensor) else sample
        seed = derive_seed(self.seed, self.name, "augment", view, domain, index)
        style = self._style(seed) if domain == TARGET else None
        drawn = draw_view(image, labels, self.input, seed, self.plain, style)
        plain = None if drawn.plain is None else max_pool(drawn.plain, self.input.pool)
        return drawn._replace(image=max_pool(drawn.image, self.input.pool), plain=plain)

    def _style(self, seed: int) -> Tensor | None:
        """Draw a crop of a style image; None if the view keeps its own amplitudes."""
        if not self.fourier or self.styles is None:
            return None
        generator = torch.Generator().manual_seed(derive_seed(seed, "style"))
        if float(torch.rand((), generator=generator)) >= self.fourier:
            return None
        index = int(torch.randint(len(self.styles), (), generator=generator))
        still = dataclasses.replace(self.input, jitter=0.0, flip=0.0, scale=(1.0, 1.0))
        return draw_view(self.styles[index], None, still, derive_seed(seed, "style crop")).image


def stage_input(input: Input, stage: Stage) -> Input:
    """Return the input of a stage, which may have its own jitter and scale."""
    jitter = input.jitter if stage.jitter is None else stage.jitter
    scale = input.scale if stage.scale is None else stage.scale
    return dataclasses.replace(input, jitter=jitter, scale=scale)


class StageBatches(Sampler[list[Key]]):
    """Batches of keys for one epoch, the same on every machine.

    An epoch consists of full batches; the draws that would not fill one are the first of the
    next epoch, so that no image is left out. Fewer images than a batch make one smaller batch.

    Args:
        data: the stage's images.
        batch_size: images per step, over all processes.
        rank: index of this process.
        world_size: number of processes; each takes every world_size-th key of a batch.

    Raises:
        ConfigError: if the processes cannot have equal shares of a batch.
    """

    def __init__(
        self, data: StageData, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size: expected 1 or more, got {batch_size}")
        if batch_size % world_size:
            raise ConfigError(
                f"batch_size: {batch_size} images cannot be shared evenly by {world_size} "
                f"processes. Choose a multiple of {world_size}."
            )
        self.data = data
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    @property
    def sampler(self) -> StageBatches:
        """Itself: Lightning looks for ``batch_sampler.sampler.set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return max(1, len(self.data) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for batch in self.batches(self.epoch):
            yield batch[self.rank :: self.world_size]

    def batches(self, epoch: int) -> list[list[Key]]:
        """Return the batches of an epoch over all processes."""
        whole = len(self.data)
        if whole < self.batch_size:
            # Each process needs the same number of images, so the first come again.
            keys = self.data.keys(epoch)
            missing = -len(keys) % self.world_size
            return [[*keys, *(keys[i % len(keys)] for i in range(missing))]]
        keys = self.data.keys(epoch, whole - whole % self.batch_size)
        return [keys[i : i + self.batch_size] for i in range(0, len(keys), self.batch_size)]


def _cloned(view: View) -> View:
    """Copy the crops out of their images, which would stay in memory with them."""
    rest = [None if part is None else part.clone() for part in view[1:]]
    return View(view.image.clone(), *rest)


def _target_share(n_target: int, n_proximity: int, ratio: float) -> float:
    """Return r / (1 + r), or 0 or 1 for one domain alone."""
    if not 0 <= ratio < float("inf"):
        raise ConfigError(f"ratio: r = |Dt| : |Dp| is a finite number from 0, got {ratio}")
    if n_target < 1 and n_proximity < 1:
        raise ConfigError("a stage needs images, got no target and no proximity images")
    if n_proximity < 1:
        return 1.0
    return ratio / (1 + ratio) if n_target >= 1 else 0.0


def _domains(share: float, seed: int, epoch: int, length: int) -> list[int]:
    if share in (0.0, 1.0):
        return [TARGET if share else PROXIMITY] * length
    generator = torch.Generator().manual_seed(derive_seed(seed, "domain", epoch))
    uniform = torch.rand(length, generator=generator, dtype=torch.float64)
    domains: list[int] = torch.where(uniform < share, TARGET, PROXIMITY).tolist()
    return domains


@lru_cache(maxsize=1 << 16)  # a function of its arguments; each epoch asks for all before it
def _targets_in(share: float, seed: int, epoch: int, length: int) -> int:
    if share in (0.0, 1.0):
        return length if share else 0
    return _domains(share, seed, epoch, length).count(TARGET)


@lru_cache(maxsize=64)
def _permutation(count: int, seed: int, domain: int, turn: int) -> list[int]:
    generator = torch.Generator().manual_seed(derive_seed(seed, "permutation", domain, turn))
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    return order
