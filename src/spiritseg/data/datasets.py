"""Data sets of decoded images, labelled or not, over files or procedural scenes."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from spiritseg.config import Input
from spiritseg.cores import usable_cores
from spiritseg.data.augment import fit, prepare
from spiritseg.data.cache import Budget, Cache
from spiritseg.data.class_map import IGNORED, ClassMap
from spiritseg.data.items import FilePair, Item
from spiritseg.errors import BadImageError, ConfigError, DataError, listed

__all__ = ["EvalData", "LabelledImages", "UnlabelledImages"]

T = TypeVar("T", Tensor, tuple[Tensor, Tensor])


class _Images(Dataset[T], Generic[T]):
    """Items that are decoded when they are read, and kept while the memory lasts."""

    def __init__(self, items: Sequence[Item], budget: Budget | None) -> None:
        self.items = list(items)
        self.skipped: list[str] = []
        self.cache: Cache[T] = Cache(budget or Budget(0))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> T:
        item = self.items[index]
        return self.cache(item.name, lambda: self._load(item))

    def part(self, items: Sequence[Item]) -> Self:
        """Return some of the images; those that are decoded already are shared."""
        images = copy.copy(self)
        images.items = list(items)
        return images

    @property
    def names(self) -> list[str]:
        """The images' paths below the root of their data set."""
        return [item.name for item in self.items]

    def record(self) -> dict[str, Any]:
        """Return how many images there are, and a hash of their names and sizes in bytes."""
        sizes = [(item.name, item.nbytes) for item in self.items]
        digest = hashlib.sha256(json.dumps(sizes).encode()).hexdigest()[:16]
        return {"images": len(self), "names and sizes": digest}

    def check_readable(self, skip_bad: bool, decode: bool = True) -> None:
        """Read every file before anything is trained.

        Args:
            skip_bad: leave unreadable images out, and list them in `skipped`.
            decode: decode the pictures, which fills the memory; otherwise read headers alone.

        Raises:
            BadImageError: for an unreadable image, unless it is left out.
            DataError: for masks that do not fit, or if no image is left.
        """
        bad: dict[str, BadImageError] = {}
        wrong: list[str] = []

        def look(index: int) -> None:
            item = self.items[index]
            try:
                _ = self[index] if decode else item.size
            except BadImageError as error:
                bad[item.name] = error
            except DataError as error:
                wrong.append(str(error))

        if any(isinstance(item, FilePair) for item in self.items):  # scenes cannot be bad
            with ThreadPoolExecutor(min(8, usable_cores())) as threads:
                list(threads.map(look, range(len(self))))  # list: raises what a thread raised
        if wrong:
            raise DataError(f"{len(wrong)} masks do not fit:\n{listed(sorted(wrong))}")
        if not bad:
            return
        if not skip_bad:
            first, *others = (bad[name] for name in sorted(bad))
            more = f" (and {len(others)} others, such as {others[0].path})" if others else ""
            raise BadImageError(first.path, first.reason + more)
        self.skipped += [str(bad[name].path) for name in self.names if name in bad]
        self.items = [item for item in self.items if item.name not in bad]
        if not self.items:
            raise DataError(f"no image is left; all are unreadable:\n{listed(self.skipped)}")

    def _load(self, item: Item) -> T:
        raise NotImplementedError


class LabelledImages(_Images[tuple[Tensor, Tensor]]):
    """Images with their labels: (3, H, W) uint8 and (H, W) uint8 train ids, 255 ignored.

    The tensors are shared with the cache: do not write into them.

    Args:
        items: the images.
        classes: from the values in the masks to train ids.
        budget: memory for what is decoded; None keeps nothing.
    """

    def __init__(
        self, items: Sequence[Item], classes: ClassMap, budget: Budget | None = None
    ) -> None:
        super().__init__(items, budget)
        self.classes = classes
        self._counts: dict[str, Tensor] = {}

    def pixels(self) -> dict[str, int]:
        """Count the pixels of each class, and those that are ignored."""
        for index, name in enumerate(self.names):
            if name not in self._counts:
                _ = self[index]
        counts = sum((self._counts[name] for name in self.names), torch.zeros(256).long())
        classes = {name: int(counts[i]) for i, name in enumerate(self.classes.names)}
        return {**classes, "ignored": int(counts[IGNORED])}

    def check_crop(self, crop: int) -> None:
        """Raise a ConfigError with the images that a training crop does not fit."""
        sizes = [(item.name, item.size) for item in self.items]
        small = [f"{name}: {h} x {w}" for name, (h, w) in sizes if min(h, w) < crop]
        if small:
            raise ConfigError(
                f"input.crop: a crop of {crop} x {crop} does not fit {len(small)} of {len(self)} "
                f"target images (height x width):\n{listed(small)}\n"
                "Choose a smaller crop, or leave these images out with target.subset."
            )

    def _load(self, item: Item) -> tuple[Tensor, Tensor]:
        image, mask = item.read()
        labels = torch.from_numpy(self.classes.to_train_ids(mask, item.source))
        if item.name not in self._counts:
            self._counts[item.name] = torch.bincount(labels.flatten(), minlength=256)
        return image, labels


class UnlabelledImages(_Images[Tensor]):
    """Images without labels: (3, H, W) uint8.

    Args:
        items: the images.
        crop: side of the training crop; smaller images are enlarged so that it fits.
        budget: memory for what is decoded; None keeps nothing.
    """

    def __init__(self, items: Sequence[Item], crop: int = 1, budget: Budget | None = None) -> None:
        super().__init__(items, budget)
        self.crop = crop

    def _load(self, item: Item) -> Tensor:
        return fit(item.read_image(), self.crop)


class EvalData(Dataset[dict[str, Any]]):
    """Whole images, ready for a network: for scores and explained variance.

    Each is a dict of ``image`` (3, H/p, W/p) float32 in [0, 1], ``index``, and if labelled
    ``labels`` (H, W) int64 at full resolution.

    Args:
        images: labelled or unlabelled ones.
        input: its max-pool is applied.
    """

    def __init__(self, images: LabelledImages | UnlabelledImages, input: Input) -> None:
        self.images = images
        self.input = input

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.images[index]
        if isinstance(sample, Tensor):
            return {"image": prepare(sample, self.input), "index": index}
        image, labels = sample
        return {"image": prepare(image, self.input), "labels": labels.long(), "index": index}
