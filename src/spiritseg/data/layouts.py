"""Where the images and masks of a data set lie: CamVid, Cityscapes, ADE20K, folders.

::

    camvid       ROOT/train/*.jpg|png      ROOT/trainannot/*.png      (val, test likewise)
    cityscapes   ROOT/leftImg8bit/train/CITY/*_leftImg8bit.png
                 ROOT/gtFine/train/CITY/*_gtFine_labelIds.png         (val likewise)
    ade20k       ROOT/images/training/*.jpg
                 ROOT/annotations/training/*.png                      (validation likewise)
    folder       ROOT/images/**            ROOT/masks/**.png
                 or ROOT/train/images/**   ROOT/train/masks/**.png    (val, test likewise)
                 or ROOT/images/train/**   ROOT/masks/train/**.png    (val, test likewise)

An image and its mask have the same path but for the folder and the suffix.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from spiritseg.errors import DataError, listed
from spiritseg.image_files import files_below

__all__ = [
    "KNOWN",
    "FilePair",
    "ade20k",
    "camvid",
    "cityscapes",
    "detect",
    "find_images",
    "folder_pairs",
]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
MASK_SUFFIXES = (".png", ".bmp")
_ADE20K = ("training", "validation")
KNOWN = (
    "camvid (train/ and trainannot/), cityscapes (leftImg8bit/ and gtFine/), "
    "ade20k (images/training/ and annotations/training/), "
    "folder (images/ and masks/, train/images/ and train/masks/, or images/train/ and masks/train/)"
)


@dataclass(frozen=True)
class FilePair:
    """One image on disk, with its mask where it is labelled.

    Args:
        name: path of the image below the root of its data set, with forward slashes.
        image: the image file.
        mask: the mask file; None where unlabelled.
    """

    name: str
    image: Path
    mask: Path | None = None


def find_images(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Find image files at any depth, sorted by their path below the folder.

    Args:
        folder: where to look; hidden files and folders are left out, links are followed.
        suffixes: lower-case suffixes that count, in any case.

    Returns:
        The files.
    """
    return files_below(folder, suffixes)


def need_folder(path: Path, what: str) -> Path:
    """Return the folder, or say that it is missing and what lies beside it."""
    if path.is_dir():
        return path
    if path.exists():
        raise DataError(f"{what}: {path} is a file; expected a folder")
    raise DataError(f"{what}: there is no folder {path}. {_found(path.parent)}")


def detect(root: Path) -> str:
    """Tell which layout a folder has.

    Args:
        root: the data set's folder.

    Returns:
        camvid, cityscapes, ade20k or folder.

    Raises:
        DataError: where it has none of them; says which there are and what was found.
    """
    if name := _layout(need_folder(root, "target.root")):
        return name
    inner = [path for path in sorted(root.iterdir()) if path.is_dir() and _layout(path)]
    hint = f" Did you mean {inner[0]}?" if inner else ""
    raise DataError(
        f"target.root {root} has no layout that is known. Expected one of: {KNOWN}. "
        f"{_found(root)}{hint}"
    )


def camvid(root: Path, split: str) -> list[FilePair]:
    """List a split (train, val or test) of CamVid in its SegNet form, sorted by name."""
    images = need_folder(root / split, f"camvid {split} images")
    masks = need_folder(root / f"{split}annot", f"camvid {split} masks")
    return _paired(root, images, masks)


def cityscapes(root: Path, split: str) -> list[FilePair]:
    """List a split (train or val) of Cityscapes, sorted by city, then name."""
    images = need_folder(root / "leftImg8bit" / split, f"cityscapes {split} images")
    masks = need_folder(root / "gtFine" / split, f"cityscapes {split} masks")
    return _paired(root, images, masks, "_leftImg8bit", "_gtFine_labelIds")


def ade20k(root: Path, split: str) -> list[FilePair]:
    """List a split (training or validation) of ADE20K's 150 classes, sorted by name.

    Args:
        root: ADEChallengeData2016, as the scene parsing benchmark ships it.
        split: its own name of the split.

    Returns:
        The pairs.
    """
    images = need_folder(root / "images" / split, f"ade20k {split} images")
    masks = need_folder(root / "annotations" / split, f"ade20k {split} masks")
    return _paired(root, images, masks)


def folder_pairs(root: Path, base: Path, what: str) -> list[FilePair]:
    """List a folder that holds images/ and masks/, nested ones too, sorted by path.

    Args:
        root: the data set's folder; names are given below it.
        base: the folder with images/ and masks/ in it.
        what: what it is, for the error message.

    Returns:
        The pairs.
    """
    images = need_folder(base / "images", f"{what} images")
    masks = need_folder(base / "masks", f"{what} masks")
    return _paired(root, images, masks)


def has_pairs(base: Path) -> bool:
    """Whether a folder holds images/ and masks/."""
    return (base / "images").is_dir() and (base / "masks").is_dir()


def _layout(root: Path) -> str | None:
    if (root / "leftImg8bit").is_dir() and (root / "gtFine").is_dir():
        return "cityscapes"
    if any((root / s).is_dir() and (root / f"{s}annot").is_dir() for s in ("train", "val", "test")):
        return "camvid"
    if any((root / "images" / s).is_dir() and (root / "annotations" / s).is_dir() for s in _ADE20K):
        return "ade20k"
    if has_pairs(root) or has_pairs(root / "train"):
        return "folder"
    return None


def _paired(
    root: Path, images: Path, masks: Path, image_end: str = "", mask_end: str = ""
) -> list[FilePair]:
    image_of = _by_key(images, find_images(images), image_end)
    mask_of = _by_key(masks, find_images(masks, MASK_SUFFIXES), mask_end)
    if not image_of:
        raise DataError(
            f"no images in {images}. Expected files *{image_end} with one of the suffixes "
            f"{', '.join(IMAGE_SUFFIXES)}. {_found(images)}"
        )
    _refuse_unpaired(image_of, mask_of, images, masks, mask_end)
    return [
        FilePair(_below(root, path), path, mask_of[key]) for key, path in sorted(image_of.items())
    ]


def _by_key(folder: Path, files: Iterable[Path], end: str) -> dict[str, Path]:
    """Index files by their path below the folder, without suffix and ending."""
    found: dict[str, Path] = {}
    for path in files:
        if not path.stem.endswith(end):
            continue  # Cityscapes keeps colour pictures and instance ids beside the labels
        key = path.relative_to(folder).with_suffix("").as_posix().removesuffix(end)
        if key in found:
            raise DataError(f"two files of one name: {found[key]} and {path}. Keep one of them.")
        found[key] = path
    return found


def _refuse_unpaired(
    image_of: dict[str, Path], mask_of: dict[str, Path], images: Path, masks: Path, mask_end: str
) -> None:
    without_mask = [path for key, path in sorted(image_of.items()) if key not in mask_of]
    without_image = [path for key, path in sorted(mask_of.items()) if key not in image_of]
    parts = []
    if without_mask:
        parts.append(
            f"{len(without_mask)} images without a mask; expected {masks}/.../"
            f"NAME{mask_end}.png for each:\n{listed(without_mask)}"
        )
    if without_image:
        parts.append(
            f"{len(without_image)} masks without an image in {images}:\n{listed(without_image)}"
        )
    if parts:
        parts.append("Add the missing files, or move the ones without a partner elsewhere.")
        raise DataError("\n".join(parts))


def _below(root: Path, path: Path) -> str:
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _found(folder: Path) -> str:
    """Say what lies in a folder."""
    if not folder.is_dir():
        return f"{folder} does not exist either." if folder != folder.parent else ""
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir() if p.name[0] != ".")
    more = f", ... ({len(names)} in all)" if len(names) > 8 else ""
    return f"Found in {folder}: {', '.join(names[:8])}{more}." if names else f"{folder} is empty."
