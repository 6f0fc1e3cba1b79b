"""Choosing images: subsets by rule, fractions by seed, and no image in two splits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

from spiritseg.data.items import FilePair, Item
from spiritseg.errors import ConfigError, DataError, listed
from spiritseg.randomness import derive_seed

__all__ = ["SPLITS", "check_disjoint", "choose", "draw", "evenly", "from_list", "without"]

SPLITS = ("train", "val", "test")


T = TypeVar("T", bound=Item)


def evenly(count: int, total: int, centred: bool = False) -> list[int]:
    """Return up to `count` evenly spaced indices in [0, total).

    With `centred` they are the middles of `count` equal parts, otherwise their starts.
    """
    count = min(count, total)
    return [(2 * i + centred) * total // (2 * count) for i in range(count)]


def choose(items: Sequence[T], subset: str, field: str, base: Path | None = None) -> list[T]:
    """Choose the images that are used.

    Args:
        items: all of them, sorted by name.
        subset: all, first:N, even:N (evenly spaced) or list:FILE (one name a line, with or
            without suffix; a trailing part of the path is enough if it is unique).
        field: the config field, for error messages.
        base: folder in which a relative list file is looked for too.

    Raises:
        ConfigError: if the rule is unknown or asks for more images than there are.
        DataError: if a listed name is not among the images.
    """
    rule, _, value = subset.partition(":")
    if subset == "all":
        return list(items)
    if rule == "list" and value:
        return from_list(items, value, field, base)
    if rule not in ("first", "even") or not value.isdecimal() or int(value) < 1:
        raise ConfigError(
            f"{field}: expected all, first:N, even:N (N from 1) or list:FILE, got {subset!r}"
        )
    count = int(value)
    if count > len(items):
        raise ConfigError(
            f"{field}: {subset} asks for {count} images, there are {len(items)}. "
            f"Use all, or {rule}:{len(items)} at the most."
        )
    rows = range(count) if rule == "first" else evenly(count, len(items))
    return [items[row] for row in rows]


def draw(items: Sequence[T], fraction: float, seed: int, what: str) -> list[T]:
    """Draw a fraction of images by a seed, at least one.

    Images are ranked by a hash of (seed, what, name): adding one leaves the order of the others
    alone, and val and test (`what`) are drawn independently.
    """
    ranked = sorted(items, key=lambda item: derive_seed(seed, what, item.name))
    drawn = {item.name for item in ranked[: max(1, round(fraction * len(items)))]}
    return [item for item in items if item.name in drawn]


def without(items: Sequence[T], taken: Sequence[T]) -> list[T]:
    """Return the items whose names are not among the taken ones."""
    names = {item.name for item in taken}
    return [item for item in items if item.name not in names]


def from_list(items: Sequence[T], file: str, field: str, base: Path | None = None) -> list[T]:
    """Choose the images that a list file names; see `choose`.

    The file has one name a line; empty lines and those with # are left out.

    Raises:
        ConfigError: if there is no such file, or it names no image.
        DataError: if a name is not that of exactly one image.
    """
    names = _read_list(file, field, base)
    by_end: dict[str, list[str]] = {}
    for item in items:
        parts = PurePosixPath(item.name).parts
        for i in range(len(parts)):
            end = PurePosixPath(*parts[i:])
            for key in {end.as_posix(), end.with_suffix("").as_posix()}:
                by_end.setdefault(key, []).append(item.name)
    hits = {name: by_end.get(PurePosixPath(name).as_posix(), []) for name in names}
    bad = [
        f"{name}: {f'{len(found)} images end so' if found else 'not found'}"
        for name, found in hits.items()
        if len(found) != 1
    ]
    if bad:
        example = items[0].name if items else "none, there are no images"
        raise DataError(
            f"{field}: each listed name must be one image's; an image is called, for example, "
            f"{example}:\n{listed(bad)}"
        )
    wanted = {found[0] for found in hits.values()}
    return [item for item in items if item.name in wanted]


def check_disjoint(splits: Mapping[str, Sequence[Item]]) -> None:
    """Refuse a file that is in two splits, by the SHA-256 of files of one size.

    Raises:
        DataError: with up to ten of the images and both of their places.
    """
    sized: dict[int, list[tuple[str, FilePair]]] = {}
    for split, items in splits.items():
        for item in items:
            if isinstance(item, FilePair) and item.nbytes:  # an empty file is a bad image
                sized.setdefault(item.nbytes, []).append((split, item))
    met: dict[str, tuple[str, FilePair]] = {}
    twice = []
    for members in sized.values():
        if len({split for split, _ in members}) < 2:
            continue
        for split, pair in members:
            first, other = met.setdefault(_sha256(pair.image), (split, pair))
            if first != split:
                twice.append(f"{pair.name} ({split}) is {other.name} ({first})")
    if twice:
        raise DataError(
            f"{len(twice)} images are in two splits, so that scores would be of images that were "
            f"trained on:\n{listed(twice)}\nKeep each image in one split."
        )


def _read_list(value: str, field: str, base: Path | None) -> list[str]:
    path = Path(value).expanduser()
    places = [path] if base is None or path.is_absolute() else [path, base / path]
    for place in places:
        if place.is_file():
            lines = (line.strip() for line in place.read_text("utf-8").splitlines())
            names = [line for line in lines if line and not line.startswith("#")]
            if not names:
                raise ConfigError(f"{field}: the list {place} names no image")
            return names
    raise ConfigError(f"{field}: no list file {' or '.join(map(str, places))}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
