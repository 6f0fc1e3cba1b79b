"""Sets of decoded images, labelled or not, over files or procedural scenes."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from spiritseg.config import Input
from spiritseg.cores import usable_cores
from spiritseg.data.classes import ClassMap
from spiritseg.data.images import Budget, image_size, read_image, read_mask
from spiritseg.data.layouts import FilePair
from spiritseg.data.scenes import SceneStyle, render
from spiritseg.data.transforms import fit, prepare
from spiritseg.errors import BadImageError, ConfigError, DataError, listed

__all__ = ["EvalData", "LabelledImages", "ScenePair", "UnlabelledImages"]

T = TypeVar("T", Tensor, tuple[Tensor, Tensor])


@dataclass(frozen=True)
class ScenePair:
    """One procedural scene, rendered when it is wanted.

    Args:
        name: what it is called in reports.
        seed: the world.
        index: which scene of it.
        size: height and width.
        style: shadows, camera and palette.
    """

    name: str
    seed: int
    index: int
    size: tuple[int, int]
    style: SceneStyle


Item = FilePair | ScenePair


class _Images(Dataset[T], Generic[T]):
    """Items that are decoded when asked for, and kept while the memory lasts."""

    def __init__(self, items: Sequence[Item], budget: Budget | None) -> None:
        self.items = list(items)
        self.skipped: list[str] = []
        self.budget = budget or Budget(0)
        self._kept: dict[str, T] = {}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> T:
        item = self.items[index]
        if (kept := self._kept.get(item.name)) is not None:
            return kept
        value = self._load(item)
        if self.budget.take(_nbytes(value)):
            self._kept[item.name] = value
        return value

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}  # pictures are decoded anew, not sent to workers

    def part(self, items: Sequence[Item]) -> Self:
        """Return some of the images; what is decoded already is shared."""
        images = copy.copy(self)
        images._kept = self._kept  # a copy, as one that is sent to a worker, has none
        images.items = list(items)
        return images

    @property
    def names(self) -> list[str]:
        """The images' paths below the root of their data set."""
        return [item.name for item in self.items]

    def record(self) -> dict[str, Any]:
        """Return how many images there are, and a hash of their names and sizes in bytes."""
        sizes = [
            (item.name, item.image.stat().st_size if isinstance(item, FilePair) else 0)
            for item in self.items
        ]
        digest = hashlib.sha256(json.dumps(sizes).encode()).hexdigest()[:16]
        return {"images": len(self), "names and sizes": digest}

    def check_readable(self, skip_bad: bool, decode: bool = True) -> None:
        """Look at every file before anything is trained.

        Args:
            skip_bad: leave unreadable images out, and list them in `skipped`.
            decode: decode the pictures, which fills the memory; else read headers alone.

        Raises:
            BadImageError: for an unreadable image, unless it is left out.
            DataError: for masks that do not fit, or where no image is left.
        """
        bad: dict[str, BadImageError] = {}
        wrong: list[DataError] = []

        def look(index: int) -> None:
            item = self.items[index]
            try:
                if decode:
                    self._note(item, self[index])
                elif isinstance(item, FilePair):
                    image_size(item.image)
            except BadImageError as error:
                bad[item.name] = error
            except DataError as error:
                wrong.append(error)

        if any(isinstance(item, FilePair) for item in self.items):  # scenes cannot be bad
            _in_threads(look, len(self))
        if wrong:
            raise _together(wrong)
        if bad and not skip_bad:
            raise _first(bad)
        self.skipped += [str(bad[name].path) for name in self.names if name in bad]
        self.items = [item for item in self.items if item.name not in bad]
        if bad and not self.items:
            raise DataError(f"no image is left; all are unreadable:\n{listed(self.skipped)}")

    def _load(self, item: Item) -> T:
        raise NotImplementedError

    def _note(self, item: Item, value: T) -> None:
        """Take note of what is worth knowing of a decoded item."""


class LabelledImages(_Images[tuple[Tensor, Tensor]]):
    """Images with their labels: (3, H, W) uint8 and (H, W) uint8 train ids, 255 ignored.

    What comes out is shared with the memory: do not write into it.

    Args:
        items: where they are.
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
        counts = torch.zeros(256, dtype=torch.int64)
        for index, item in enumerate(self.items):
            if item.name not in self._counts:
                self._note(item, self[index])
            counts += self._counts[item.name]
        return {
            **{name: int(counts[i]) for i, name in enumerate(self.classes.names)},
            "ignored": int(counts[255]),
        }

    def check_crop(self, crop: int) -> None:
        """Refuse a crop that does not fit every image, from the files' headers.

        Args:
            crop: side of the training crop.

        Raises:
            ConfigError: with up to ten of the images that are too small.
        """
        small: list[str] = []

        def look(index: int) -> None:
            item = self.items[index]
            try:
                size = item.size if isinstance(item, ScenePair) else image_size(item.image)
            except BadImageError:
                return  # check_readable tells all of these together
            if min(size) < crop:
                small.append(f"{item.name}: {size[0]} x {size[1]}")

        _in_threads(look, len(self))
        if small:
            raise ConfigError(
                f"input.crop: a crop of {crop} x {crop} does not fit {len(small)} of {len(self)} "
                f"target images (height x width):\n{listed(sorted(small))}\n"
                "Choose a smaller crop, or leave these images out with target.subset."
            )

    def _note(self, item: Item, value: tuple[Tensor, Tensor]) -> None:
        self._counts[item.name] = torch.bincount(value[1].flatten(), minlength=256)

    def _load(self, item: Item) -> tuple[Tensor, Tensor]:
        if isinstance(item, ScenePair):
            scene = render(item.seed, item.index, item.size, item.style)
            image = torch.from_numpy(scene.image).permute(2, 0, 1).contiguous()
            return image, torch.from_numpy(self.classes.to_train_ids(scene.labels, item.name))
        if item.mask is None:
            raise DataError(f"{item.image} has no mask")
        image, mask = read_image(item.image), read_mask(item.mask)
        if mask.shape != image.shape[1:]:
            raise DataError(
                f"the mask {item.mask} is {mask.shape[0]} x {mask.shape[1]} (height x width), its "
                f"image {item.image} is {image.shape[1]} x {image.shape[2]}. Make both of one size."
            )
        return image, torch.from_numpy(self.classes.to_train_ids(mask, item.mask))


class UnlabelledImages(_Images[Tensor]):
    """Images without labels: (3, H, W) uint8.

    Args:
        items: where they are.
        crop: side of the training crop; smaller images are resized up so that it fits.
        budget: memory for what is decoded; None keeps nothing.
    """

    def __init__(self, items: Sequence[Item], crop: int = 1, budget: Budget | None = None) -> None:
        super().__init__(items, budget)
        self.crop = crop

    def _load(self, item: Item) -> Tensor:
        if isinstance(item, ScenePair):
            picture = render(item.seed, item.index, item.size, item.style).image
            image = torch.from_numpy(picture).permute(2, 0, 1).contiguous()
        else:
            image = read_image(item.image)
        return fit(image, self.crop)


class EvalData(Dataset[dict[str, Any]]):
    """Whole images, ready for a network: what scores and explained variance are measured on.

    Each is a dict of ``image`` (3, H/p, W/p) float32 in [0, 1], ``index``, and where labelled
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
        if not 0 <= index < len(self):
            raise IndexError(index)
        sample = self.images[index]
        if isinstance(sample, Tensor):
            return {"image": prepare(sample, self.input), "index": index}
        image, labels = sample
        return {"image": prepare(image, self.input), "labels": labels.long(), "index": index}


def _nbytes(value: Tensor | tuple[Tensor, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in (value if isinstance(value, tuple) else (value,)))


def _in_threads(look: Callable[[int], None], count: int) -> None:
    with ThreadPoolExecutor(min(8, usable_cores())) as pool:
        list(pool.map(look, range(count)))  # list: raises what a thread raised


def _first(bad: Mapping[str, BadImageError]) -> BadImageError:
    """Name the first unreadable image by name, and the others with it."""
    first, *others = (bad[name] for name in sorted(bad))
    if not others:
        return first
    files = ", ".join(str(error.path) for error in others[:9])
    more = ", ..." if len(others) > 9 else ""
    return BadImageError(first.path, f"{first.reason} (and {len(others)} others: {files}{more})")


def _together(wrong: Sequence[DataError]) -> DataError:
    messages = sorted(str(error) for error in wrong)
    if len(messages) == 1:
        return DataError(messages[0])
    return DataError(f"{len(messages)} masks do not fit:\n{listed(messages)}")
