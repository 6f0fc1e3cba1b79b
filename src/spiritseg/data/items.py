"""One image of a data set: a file with its mask, or a procedural scene; and pairing files up."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from spiritseg.errors import DataError, listed
from spiritseg.images import (
    IMAGE_SUFFIXES,
    MASK_SUFFIXES,
    files_below,
    image_size,
    read_image,
    read_mask,
)

if TYPE_CHECKING:
    from torch import Tensor

    from spiritseg.scenes import SceneStyle

__all__ = ["FilePair", "Item", "ReadLabels", "ScenePair", "need_folder", "pair_up", "what_is_in"]

ReadLabels = Callable[[Path], npt.NDArray[Any]]


@dataclass(frozen=True)
class FilePair:
    """One image on disk, with its mask if it is labelled.

    Args:
        name: path of the image below the root of its data set, with forward slashes.
        image: the image file.
        mask: the mask file; None for an unlabelled image.
        read_labels: label format: from the mask file to (H, W) raw values of the class map.
    """

    name: str
    image: Path
    mask: Path | None = None
    read_labels: ReadLabels = field(default=read_mask, compare=False, repr=False)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels, from the file's header."""
        return image_size(self.image)

    @property
    def nbytes(self) -> int:
        """Size of the image file."""
        return self.image.stat().st_size

    @property
    def source(self) -> Path | None:
        """Where the labels come from, for error messages."""
        return self.mask

    def read_image(self) -> Tensor:
        """Decode the image, (3, H, W) uint8."""
        return read_image(self.image)

    def read(self) -> tuple[Tensor, npt.NDArray[Any]]:
        """Decode the image, (3, H, W) uint8, and the raw values of its mask, (H, W).

        Raises:
            BadImageError: if either file is unreadable.
            DataError: if there is no mask, or it has another size.
        """
        if self.mask is None:
            raise DataError(f"{self.image} has no mask")
        image, mask = read_image(self.image), self.read_labels(self.mask)
        if mask.shape != image.shape[1:]:
            raise DataError(
                f"the mask {self.mask} is {mask.shape[0]} x {mask.shape[1]} (height x width), its "
                f"image {self.image} is {image.shape[1]} x {image.shape[2]}. Make both of one size."
            )
        return image, mask


@dataclass(frozen=True)
class ScenePair:
    """One procedural scene, rendered when it is read.

    Args:
        name: what reports call it.
        seed: seed of the world.
        index: index of the scene in it.
        size: (H, W) in pixels.
        style: shadows, camera and palette.
    """

    name: str
    seed: int
    index: int
    size: tuple[int, int]
    style: SceneStyle
    nbytes = 0

    @property
    def source(self) -> str:
        """Where the labels come from, for error messages."""
        return self.name

    def read_image(self) -> Tensor:
        """Render the image, (3, H, W) uint8."""
        return self.read()[0]

    def read(self) -> tuple[Tensor, npt.NDArray[Any]]:
        """Render the image, (3, H, W) uint8, and its classes, (H, W)."""
        import torch

        from spiritseg.scenes import render

        scene = render(self.seed, self.index, self.size, self.style)
        return torch.from_numpy(scene.image).permute(2, 0, 1).contiguous(), scene.labels


Item = FilePair | ScenePair


def pair_up(
    root: Path,
    images: Path,
    masks: Path,
    what: str,
    ends: tuple[str, str] = ("", ""),
    read_labels: ReadLabels = read_mask,
) -> list[FilePair]:
    """Pair images with masks that have the same path but for the folder, the ending and the suffix.

    Args:
        root: folder of the data set; names are given below it.
        images: folder of the images, searched at any depth.
        masks: folder of the masks.
        what: what these images are, for error messages.
        ends: ending of every image's and every mask's stem; other files are left out.
        read_labels: label format.

    Raises:
        DataError: if a folder is missing or has no image, or a file has no partner.
    """
    need_folder(images, f"{what} images")
    need_folder(masks, f"{what} masks")
    image_of = _by_key(images, files_below(images), ends[0])
    mask_of = _by_key(masks, files_below(masks, MASK_SUFFIXES), ends[1])
    if not image_of:
        raise DataError(
            f"no images in {images}. Expected files *{ends[0]} with one of the suffixes "
            f"{', '.join(IMAGE_SUFFIXES)}. {what_is_in(images)}"
        )
    alone = [
        f"{len(paths)} {kind}:\n{listed(sorted(paths))}"
        for kind, paths in (
            (
                f"images without a mask; expected {masks}/.../NAME{ends[1]}.png for each",
                [path for key, path in image_of.items() if key not in mask_of],
            ),
            (
                f"masks without an image in {images}",
                [path for key, path in mask_of.items() if key not in image_of],
            ),
        )
        if paths
    ]
    if alone:
        hint = "Add the missing files, or move the ones without a partner elsewhere."
        raise DataError("\n".join([*alone, hint]))
    return [
        FilePair(
            (path.relative_to(root) if path.is_relative_to(root) else path).as_posix(),
            path,
            mask_of[key],
            read_labels,
        )
        for key, path in sorted(image_of.items())
    ]


def need_folder(path: Path, what: str) -> Path:
    """Return the folder; if it is missing, raise a DataError with what its parent holds."""
    if path.is_dir():
        return path
    if path.exists():
        raise DataError(f"{what}: {path} is a file; expected a folder")
    raise DataError(f"{what}: there is no folder {path}. {what_is_in(path.parent)}")


def what_is_in(folder: Path) -> str:
    """List up to eight entries of a folder in a sentence, for error messages."""
    if not folder.is_dir():
        return f"{folder} does not exist either." if folder != folder.parent else ""
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir() if p.name[0] != ".")
    more = f", ... ({len(names)} in all)" if len(names) > 8 else ""
    return f"Found in {folder}: {', '.join(names[:8])}{more}." if names else f"{folder} is empty."


def _by_key(folder: Path, files: Iterable[Path], end: str) -> dict[str, Path]:
    """Index files by their path below the folder, without suffix and ending."""
    found: dict[str, Path] = {}
    for path in files:
        if not path.stem.endswith(end):
            continue  # such as Cityscapes' coloured masks
        key = path.relative_to(folder).with_suffix("").as_posix().removesuffix(end)
        if key in found:
            raise DataError(f"two files of one name: {found[key]} and {path}. Keep one of them.")
        found[key] = path
    return found
