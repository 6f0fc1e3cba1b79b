"""Where predictions go: their names, whose a folder of them is, and masks and pictures."""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import Image

from spiritseg.deploy.sources import Item
from spiritseg.deploy.video_writer import FORMATS
from spiritseg.errors import ConfigError, DataError, RunError, listed, unknown
from spiritseg.export.metadata import ModelCard
from spiritseg.files import json_bytes, make_folder, write_atomically
from spiritseg.pixels import Pixels

__all__ = [
    "Kind",
    "check_kind",
    "claim",
    "earlier_outputs",
    "note_source",
    "plan",
    "shows_whole",
    "write_png",
]

Kind = Literal["mask", "overlay", "video"]

_RECORD = ".spiritseg-predict.json"
_LONGEST_NAME = 255  # bytes of a file's name, on the usual file systems


def plan(items: Sequence[Item], out: Path, kind: Kind) -> list[tuple[Item, Path]]:
    """Name the output of each item below a folder.

    An image ``a/b.jpg`` becomes ``a/b.png`` (mask) or ``a/b.overlay.png``; where two inputs
    would become one, both keep their suffix (``a/b.jpg.png``). A video becomes a folder of
    frames ``a/b.mp4/000000.png``, or with kind video ``a/b.overlay.mp4``. What a camera sees
    does not come again: its output takes a name that is free.

    Args:
        items: what is segmented.
        out: the folder.
        kind: of the outputs.

    Returns:
        Each item with its file, or with the folder of its frames.

    Raises:
        DataError: two inputs would still share an output, an output would replace an input, or
            its name would be too long.
    """
    short = [_name(item, kind, False) for item in items]
    count = Counter(short)
    names = [
        name if count[name] == 1 else _name(item, kind, True)
        for item, name in zip(items, short, strict=True)
    ]
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if twice:
        raise DataError(
            f"several inputs lead to one output:\n{listed(twice)}\nGive their common folder as "
            "the one input, or predict them into different folders."
        )
    long = [name for name in names if len(os.fsencode(Path(name).name)) > _LONGEST_NAME]
    if long:
        raise DataError(
            f"outputs would have names of more than {_LONGEST_NAME} bytes:\n{listed(long)}\n"
            "Rename the inputs."
        )
    inputs = {item.path.resolve() for item in items if item.kind != "camera"}
    planned = [
        (item, _free(out / name) if item.kind == "camera" else out / name)
        for item, name in zip(items, names, strict=True)
    ]
    lost = [str(target) for _, target in planned if target.resolve() in inputs]
    if lost:
        raise DataError(f"outputs would replace inputs:\n{listed(lost)}\nChoose another --out.")
    return planned


def claim(
    out: Path,
    kind: Kind,
    card: ModelCard,
    opacity: float,
    planned: Sequence[tuple[Item, Path]] = (),
    frames: int = 0,
) -> None:
    """Take a folder for the outputs of one student, so that a later call can continue.

    A file that is there already counts as finished, so it has to be what this call would make.
    A record in the folder says of which student and options its masks are, of which its
    overlays (pictures and videos alike), where its videos were cut, and what each of them was
    made from.

    Args:
        out: made if it is not there.
        kind: of the outputs.
        card: the student's.
        opacity: of overlays.
        planned: what will be made, see `plan`.
        frames: at which videos are cut; 0 for none.

    Raises:
        RunError: the folder holds outputs of another student or of other options, or files of
            which no record says whose they are, or it cannot be written.
    """
    student = _made_by(card)
    mine: dict[str, dict[str, Any]] = {"mask": student}
    if kind != "mask":
        mine = {"overlay": {**student, "opacity": f"{opacity:g}"}}
    if kind == "video" and any(item.kind == "video" for item, _ in planned):
        mine["video"] = {"frames": frames}
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot use the folder {out}: {error.strerror}.") from None
    record = _read_record(out)
    for what, made_by in mine.items():
        if not _same(record.get(what, made_by), made_by):
            raise RunError(
                f"{out} holds {what} outputs of another student or of other options (this call: "
                f"{_said(made_by)}; there: {_said(record[what])}); choose another --out, or "
                "empty it."
            )
    unsaid = [path for item, path in planned if _file_kind(item, kind) not in record]
    foreign = [str(path) for path in unsaid if _holds_something(path)]
    if foreign:
        raise RunError(
            f"{out} holds files under the names of this call's outputs, and no record says that "
            f"spiritseg predict made them:\n{listed(foreign)}\nThey would count as finished. "
            "Choose another --out, or move them away."
        )
    names = {_below(out, path) for _, path in planned} | set(record["outputs"])
    write_atomically(out / _RECORD, json_bytes({**record, **mine, "outputs": sorted(names)}))


def earlier_outputs(out: Path) -> set[Path]:
    """Say what earlier calls made, or were about to make, in a folder.

    Args:
        out: the folder, which need not be there.

    Returns:
        Files, and folders of frames, with their links resolved.

    Raises:
        RunError: the record in the folder cannot be read.
    """
    return {(out / name).resolve() for name in _read_record(out)["outputs"]}


def shows_whole(out: Path, path: Path, size: int) -> bool:
    """Whether a video that is there was made from its source as it is now, to its end.

    Args:
        out: the folder.
        path: the video.
        size: bytes of its source. A recording that was still copied has fewer.

    Returns:
        True too where the record, an older one, does not say what it was made from.

    Raises:
        RunError: the record in the folder cannot be read.
    """
    return bool(_read_record(out)["sources"].get(_below(out, path), size) == size)


def note_source(out: Path, path: Path, size: int) -> None:
    """Note what a video is made from, for `shows_whole`.

    Args:
        out: the folder.
        path: the video.
        size: bytes of its source; 0 where it could not be read to its end.

    Raises:
        RunError: the record in the folder cannot be read or written.
    """
    record = _read_record(out)
    sources = {**record["sources"], _below(out, path): size}
    write_atomically(out / _RECORD, json_bytes({**record, "sources": sources}))


def _below(out: Path, path: Path) -> str:
    return path.relative_to(out).as_posix()


def _read_record(out: Path) -> dict[str, Any]:
    path = out / _RECORD
    nothing: dict[str, Any] = {"outputs": [], "sources": {}}
    try:
        record = {**nothing, **json.loads(path.read_bytes())}
    except (FileNotFoundError, NotADirectoryError):
        return nothing
    except OSError as error:
        raise RunError(f"cannot use the folder {out}: {error.strerror}.") from None
    except (ValueError, TypeError):  # no JSON, or no dict
        record = {}
    names = record.get("outputs")
    known = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not known or not isinstance(record["sources"], dict):
        raise RunError(
            f"{path} is not a record of spiritseg predict, so whose outputs {out} holds is not "
            "known. Choose another --out, or move what is in it away, this file too."
        )
    return record


def _file_kind(item: Item, kind: Kind) -> Kind:
    """Return the kind of an item's files: among videos, an image becomes an overlay."""
    return "overlay" if kind == "video" and item.kind == "image" else kind


def _made_by(card: ModelCard) -> dict[str, Any]:
    """Return what tells a student's masks from those of another export of it."""
    made_by = {
        "student": card.student_sha256,
        "precision": card.precision,
        "preprocess": card.preprocess,
    }
    # Images are brought to a fixed size first, which changes their masks.
    return made_by if card.dynamic else {**made_by, "size": "x".join(map(str, card.size))}


def _same(there: object, mine: dict[str, Any]) -> bool:
    """Whether a record says the same; an older one does not know the export's size and input."""
    if isinstance(there, dict) and "preprocess" not in there:
        mine = {key: mine[key] for key in mine if key not in ("preprocess", "size")}
    return there == mine


def _said(made_by: object) -> str:
    if not isinstance(made_by, dict):
        return str(made_by)
    return ", ".join(f"{key} {str(value)[:12]}" for key, value in made_by.items())


def _holds_something(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def write_png(path: Path, pixels: Pixels) -> None:
    """Write a mask or a picture whole, or not at all.

    Args:
        path: the file; its folder is made if it is not there.
        pixels: a mask (H, W) or a picture (H, W, 3), uint8.

    Raises:
        RunError: it cannot be written.
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    make_folder(path.parent)
    write_atomically(path, buffer.getvalue())


def _name(item: Item, kind: Kind, whole: bool) -> str:
    if item.kind == "image":
        stem = item.name if whole else str(Path(item.name).with_suffix(""))
        return f"{stem}.png" if kind == "mask" else f"{stem}.overlay.png"
    if kind != "video":
        return item.name if kind == "mask" else f"{item.name}.overlay"
    suffix = Path(item.name).suffix.lower()
    stem = item.name if whole or item.kind == "camera" else str(Path(item.name).with_suffix(""))
    return f"{stem}.overlay{suffix if suffix in FORMATS else '.mkv'}"


def _free(path: Path) -> Path:
    number = 0
    free = path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


def check_kind(kind: str) -> None:
    """Refuse an unknown kind of output.

    Args:
        kind: mask, overlay or video.

    Raises:
        ConfigError: it is none of them.
    """
    if kind not in get_args(Kind):
        raise ConfigError(unknown("kind", kind, get_args(Kind)))
