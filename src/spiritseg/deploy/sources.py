"""Images, folders, globs, videos and cameras: found and named; images decoded ahead."""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from spiritseg.errors import BadImageError, ConfigError, SpiritsegError
from spiritseg.images import IMAGE_SUFFIXES, Pixels, files_below, read_pixels

__all__ = [
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Item",
    "check_path",
    "find_images",
    "find_items",
    "read_ahead",
]

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".ts")
_CAMERA = "camera:"


@dataclass(frozen=True)
class Item:
    """One thing to segment.

    Args:
        path: the file; for a camera its number.
        name: what its output is called after: the path below the input that led to it.
        kind: image, video or camera.
    """

    path: Path
    name: str
    kind: Literal["image", "video", "camera"]


def check_path(path: str | Path, error: type[SpiritsegError]) -> None:
    """Refuse a path that the system cannot look up, such as a name of 5,000 characters.

    Args:
        path: a file or folder, which need not be there.
        error: what is raised.

    Raises:
        SpiritsegError: of that type, where a name is too long, or a folder may not be entered.
    """
    try:
        os.lstat(Path(path) / "student" / "student.safetensors")  # the longest path below it
    except (FileNotFoundError, NotADirectoryError):
        return  # whoever opens it says so
    except (OSError, ValueError) as reason:
        text = str(path)
        shown = text if len(text) <= 120 else f"{text[:80]}...{text[-30:]}"
        why = getattr(reason, "strerror", None) or reason
        said = f"cannot look up {shown} ({len(text)} characters): {why}. Check the path."
        raise error(said) from None


def find_items(
    inputs: Sequence[str | Path], out: Path | None = None, made: Collection[Path] = ()
) -> list[Item]:
    """Find what inputs stand for.

    Folders are searched at any depth, through links too; a glob's ``**`` passes by linked
    folders. What is hidden is left out.

    Args:
        inputs: files, folders, globs, or ``camera:0``.
        out: a folder; a folder or glob that it lies below does not bring in what is in it.
        made: files and folders, resolved, that no folder or glob brings in.

    Returns:
        The items in the order of the inputs, a folder's sorted; a file that is met again
        counts once.

    Raises:
        ConfigError: an input that is not there, or has nothing to segment.
    """
    found: dict[tuple[bool, Path], Item] = {}
    for given in inputs:
        root, items = _items(str(given))
        if root is not None and items:
            below = out if out is not None and _inside(out, root) else None
            items = [item for item in items if not _is_output(item.path, below, made)]
            if not items:
                raise ConfigError(
                    f"{given}: nothing to segment but what is in --out, or was made by an "
                    "earlier call. Give the images themselves."
                )
        if not items:
            raise ConfigError(
                f"{given}: nothing to segment. Expected images ({' '.join(IMAGE_SUFFIXES)}), "
                f"videos ({' '.join(VIDEO_SUFFIXES)}), folders or globs of them, or camera:0."
            )
        for item in items:
            found.setdefault((item.kind == "camera", item.path.resolve()), item)
    return list(found.values())


def find_images(inputs: Sequence[str | Path]) -> list[Path]:
    """Find the image files that inputs stand for; videos and cameras among them are passed by.

    Args:
        inputs: files, folders and globs; see `find_items`.

    Returns:
        The files in the order of the inputs, a folder's sorted, each once.

    Raises:
        ConfigError: an input that is not there, or has nothing to segment.
    """
    return [item.path for item in find_items(inputs) if item.kind == "image"]


def read_ahead(items: Iterable[Item], workers: int) -> Iterator[tuple[Item, Pixels | str]]:
    """Decode images in several threads, a few ahead of the one that is asked for.

    Args:
        items: images.
        workers: threads.

    Yields:
        In order, each item with its pixels (H, W, 3) uint8, or with why it cannot be read.
    """
    left = iter(items)
    with ThreadPoolExecutor(workers, "decode") as pool:
        ahead: deque[tuple[Item, Future[Pixels | str]]] = deque()
        try:
            while True:
                for item in islice(left, 2 * workers - len(ahead)):
                    ahead.append((item, pool.submit(_read, item.path)))
                if not ahead:
                    return
                item, future = ahead.popleft()
                yield item, future.result()
        finally:
            for _, future in ahead:
                future.cancel()


def _items(given: str) -> tuple[Path | None, list[Item]]:
    """Return what an input stands for, and the folder that was searched, if one was."""
    if given.startswith(_CAMERA):
        number = given.removeprefix(_CAMERA)
        return None, [Item(Path(number), f"camera-{number}", "camera")] if number else []
    try:
        path = Path(given).expanduser()
    except RuntimeError as error:  # ~nobody
        raise ConfigError(f"{given}: {error}.") from None
    check_path(path, ConfigError)
    if path.is_dir():
        return path, _within(path, files_below(path, IMAGE_SUFFIXES + VIDEO_SUFFIXES))
    if path.is_file():
        return None, [Item(path, path.name, "video" if _is_video(path) else "image")]
    if not glob.has_magic(given):
        raise ConfigError(f"{given}: there is no such file or folder.")
    if any("**" in part and part != "**" for part in path.parts):
        raise ConfigError(
            f"{given}: ** stands for folders at any depth, and for nothing else beside it. Write "
            "NAME/**/*.png for files at any depth, NAME/*.png for those of one folder."
        )
    fixed = path
    while glob.has_magic(str(fixed)):
        fixed = fixed.parent
    try:
        found = sorted(fixed.glob(str(path.relative_to(fixed))))
    except OSError as error:  # a name in it is too long
        raise ConfigError(f"{given}: cannot be searched: {error.strerror}.") from None
    return fixed, _within(fixed, found)


def _within(root: Path, files: Iterable[Path]) -> list[Item]:
    items = []
    for file in files:
        below = file.relative_to(root)
        hidden = any(part.startswith(".") for part in below.parts)
        wanted = _is_video(file) or file.suffix.lower() in IMAGE_SUFFIXES
        if wanted and not hidden and file.is_file():
            items.append(Item(file, below.as_posix(), "video" if _is_video(file) else "image"))
    return items


def _inside(path: Path, folder: Path) -> bool:
    """Whether it lies below the folder, at any depth."""
    return folder.resolve() in path.resolve().parents


def _is_output(path: Path, out: Path | None, made: Collection[Path]) -> bool:
    if out is not None and _inside(path, out):
        return True
    real = path.resolve()
    return bool(made) and (real in made or any(folder in made for folder in real.parents))


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def _read(path: Path) -> Pixels | str:
    try:
        return read_pixels(path)
    except BadImageError as error:
        return error.reason
    except MemoryError:
        return "there is not enough memory for it"
