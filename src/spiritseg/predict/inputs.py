"""The inputs of a prediction: images, videos, folders and globs, and the names of their outputs."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spiritseg.errors import ConfigError, DataError, SpiritsegError, listed
from spiritseg.images import IMAGE_SUFFIXES, files_below

__all__ = ["WRITTEN_FORMATS", "Item", "Kind", "check_path", "find_images", "find_items", "plan"]

Kind = Literal["mask", "overlay", "video"]

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".ts")
_SUFFIXES = IMAGE_SUFFIXES + VIDEO_SUFFIXES
# Videos that keep their suffix, with FFmpeg's name of the format; the others become Matroska.
WRITTEN_FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}


@dataclass(frozen=True)
class Item:
    """An image or a video to segment."""

    path: Path
    name: str  # its path below the input that led to it, after which its output is named

    @property
    def is_video(self) -> bool:
        """Whether it is a video, by its suffix."""
        return self.path.suffix.lower() in VIDEO_SUFFIXES


def check_path(path: str | Path, error: type[SpiritsegError]) -> None:
    """Refuse a path that the system cannot look up, such as a name of 5,000 characters.

    Args:
        path: File or folder, which need not exist.
        error: Type of the error.

    Raises:
        SpiritsegError: of that type, if a name is too long or a folder may not be entered.
    """
    try:
        os.lstat(Path(path) / "student" / "student.safetensors")  # the longest path below it
    except (FileNotFoundError, NotADirectoryError):
        return  # reported where the path is opened
    except (OSError, ValueError) as reason:
        text = str(path)
        shown = text if len(text) <= 120 else f"{text[:80]}...{text[-30:]}"
        why = getattr(reason, "strerror", None) or reason
        raise error(
            f"cannot look up {shown} ({len(text)} characters): {why}. Check the path."
        ) from None


def find_items(inputs: Sequence[str | Path], out: Path | None = None) -> list[Item]:
    """Find the images and videos of the inputs.

    Folders are searched at any depth, and links in them are followed; a glob's ``**`` skips
    linked folders. Hidden files are left out.

    Args:
        inputs: Files, folders and globs.
        out: Folder of outputs. What it holds is left out where it lies below a folder or glob.

    Returns:
        The items in the order of the inputs, those of a folder sorted; each file once.

    Raises:
        ConfigError: if an input does not exist, or has nothing to segment.
        DataError: if `out` is a folder that is searched: its outputs would become inputs.
    """
    found: dict[Path, Item] = {}
    for given in inputs:
        root, items = _items(str(given))
        if root is not None and out is not None:
            if out.resolve() == root.resolve():
                raise DataError(
                    f"--out is {given}, the folder of the inputs: the outputs would replace inputs "
                    "or become inputs of the next call. Choose another --out."
                )
            if root.resolve() in out.resolve().parents:
                items = [i for i in items if out.resolve() not in i.path.resolve().parents]
        if not items:
            raise ConfigError(
                f"{given}: nothing to segment. Expected images ({' '.join(IMAGE_SUFFIXES)}), "
                f"videos ({' '.join(VIDEO_SUFFIXES)}), or folders or globs of them; --out is not "
                "searched."
            )
        for item in items:
            found.setdefault(item.path.resolve(), item)
    return list(found.values())


def find_images(inputs: Sequence[str | Path]) -> list[Path]:
    """Find the image files of the inputs, as `find_items` does, without the videos among them."""
    return [item.path for item in find_items(inputs) if not item.is_video]


def plan(items: Sequence[Item], out: Path, kind: Kind) -> dict[Item, Path]:
    """Name the output of each item.

    An image ``a/b.jpg`` becomes ``a/b.png`` (mask) or ``a/b.overlay.png``; where two inputs
    would become one, both keep their suffix (``a/b.jpg.png``). A video becomes a folder of
    frames ``a/b.mp4/000000.png``, or with kind video a file ``a/b.overlay.mp4``.

    Args:
        items: Images and videos.
        out: Folder of the outputs.
        kind: Kind of the outputs.

    Returns:
        The file of each item, or the folder of its frames.

    Raises:
        DataError: if two inputs would still share an output, or an output would replace an input.
    """
    short = [_output(item, kind, whole=False) for item in items]
    count = Counter(short)
    names = [
        name if count[name] == 1 else _output(item, kind, whole=True)
        for item, name in zip(items, short, strict=True)
    ]
    shared = sorted(name for name, times in Counter(names).items() if times > 1)
    if shared:
        raise DataError(
            f"several inputs would have one output:\n{listed(shared)}\nGive their common folder "
            "as the only input, or use different --out folders."
        )
    inputs = {item.path.resolve() for item in items}
    lost = [str(out / name) for name in names if (out / name).resolve() in inputs]
    if lost:
        raise DataError(f"outputs would replace inputs:\n{listed(lost)}\nChoose another --out.")
    return {item: out / name for item, name in zip(items, names, strict=True)}


def _output(item: Item, kind: Kind, whole: bool) -> str:
    """Return the name of an output; a whole one keeps the suffix of its input."""
    stem = item.name if whole else str(Path(item.name).with_suffix(""))
    if not item.is_video:
        return f"{stem}.png" if kind == "mask" else f"{stem}.overlay.png"
    if kind != "video":
        return item.name if kind == "mask" else f"{item.name}.overlay"
    suffix = item.path.suffix.lower()
    return f"{stem}.overlay{suffix if suffix in WRITTEN_FORMATS else '.mkv'}"


def _items(given: str) -> tuple[Path | None, list[Item]]:
    """Return the folder that is searched, if any, and the items of an input."""
    try:
        path = Path(given).expanduser()
    except RuntimeError as error:  # ~nobody
        raise ConfigError(f"{given}: {error}.") from None
    check_path(path, ConfigError)
    if path.is_dir():
        return path, _within(path, files_below(path, _SUFFIXES))
    if path.is_file():
        return None, [Item(path, path.name)]
    if not glob.has_magic(given):
        raise ConfigError(f"{given}: there is no such file or folder.")
    if any("**" in part and part != "**" for part in path.parts):
        raise ConfigError(
            f"{given}: ** matches whole folders only. Write NAME/**/*.png for files at any depth, "
            "NAME/*.png for those of one folder."
        )
    root = path
    while glob.has_magic(str(root)):
        root = root.parent
    try:
        found = sorted(root.glob(str(path.relative_to(root))))
    except OSError as error:  # a name in it is too long
        raise ConfigError(f"{given}: cannot be searched: {error.strerror}.") from None
    return root, _within(root, found)


def _within(root: Path, files: Iterable[Path]) -> list[Item]:
    items = [Item(file, file.relative_to(root).as_posix()) for file in files]
    return [
        item
        for item in items
        if not any(part.startswith(".") for part in item.name.split("/"))
        and item.path.suffix.lower() in _SUFFIXES
        and item.path.is_file()
    ]
