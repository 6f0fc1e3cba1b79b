"""Which images are independent: drives by file name, and blocks of consecutive frames."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "EQUAL",
    "LEAST_UNITS",
    "autocorrelation_time",
    "block_length",
    "sequence_of",
    "units_of",
]

Floats = NDArray[np.float64]

LEAST_UNITS = 10  # sequences; fewer are cut into blocks of consecutive frames
EQUAL = 1e-9  # results that differ by less are equal, up to rounding
_TIMES = 2.5  # length of a block, in autocorrelation times above 1

_WORD = r"(?:f|fr|frm|frames?|im|img|images?|pic|picture|photo)"
_NUMBERED = re.compile(r"(.+)_[a-z]?\d+", re.IGNORECASE)
_WORDED = re.compile(rf"(.+)[-_. ]{_WORD}[-_. ]?\d+", re.IGNORECASE)
# Not 2024-05-17, nor 12-30-01: what stands before the dash has a letter.
_DASHED = re.compile(rf"(?!{_WORD}-\d+$)(.*[a-z][^-_. ]*)-\d+", re.IGNORECASE)
_HASHED = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4,})+")  # BDD100K, UUIDs: no number of a frame


@lru_cache(1 << 16)
def sequence_of(name: str) -> str:
    """Return the drive that an image belongs to; frames of one drive are not independent.

    That is the folder, with what stands before the frame number in the file's name, without
    Cityscapes' ending. The frame number follows the last ``_`` (a letter may stand before the
    digits), a word such as ``_frame`` or ``-img``, or the last ``-`` after a name with a letter
    (which excludes dates and times). Without a frame number it is the folder alone.

    ==================================================  ==============================
    ``test/Seq05VD_f00000.png`` (CamVid)                ``test/Seq05VD``
    ``munster/munster_000001_000019_leftImg8bit.png``   ``munster/munster_000001``
    ``drive01_frame0001.jpg``, ``drive01-000123.jpg``   ``drive01``
    ``holiday/0001.jpg``, ``holiday/2024-05-17.jpg``    ``holiday``
    ==================================================  ==============================

    """
    path = PurePosixPath(name)
    folder = "" if str(path.parent) == "." else str(path.parent)
    stem = path.stem.removesuffix("_leftImg8bit")
    found = _NUMBERED.fullmatch(stem) or _WORDED.fullmatch(stem)
    if found is None and not _HASHED.fullmatch(stem):
        found = _DASHED.fullmatch(stem)
    if found is None:
        return folder
    return f"{folder}/{found[1]}" if folder else found[1]


def units_of(names: Sequence[str], length: float = 1, least: int = LEAST_UNITS) -> list[str]:
    """Return the resampling unit of each image.

    Units are the sequences. Where there are fewer than `least`, each is cut into blocks of
    consecutive frames, `least` in all: the uncertainty then describes other frames of these
    drives, not other drives. No block is shorter than `length`, even if that leaves too few.

    Args:
        names: Paths of the images.
        length: Minimum length of a block in frames, from `block_length`.
        least: Number of units to reach.
    """
    drives = _drives(names)
    if len(drives) >= least:
        return [sequence_of(name) for name in names]
    units = [""] * len(names)
    blocks = _blocks([len(rows) for rows in drives.values()], length, least)
    for (sequence, rows), count in zip(drives.items(), blocks, strict=True):
        for place, row in enumerate(rows):
            units[row] = f"{sequence} block {place * count // len(rows) + 1}"
    return units


def _drives(names: Sequence[str]) -> dict[str, list[int]]:
    """Return the indices of each sequence's images in `names`, in the order of the frames."""
    drives: dict[str, list[int]] = {}
    for row in sorted(range(len(names)), key=lambda row: _frame_order(names[row])):
        drives.setdefault(sequence_of(names[row]), []).append(row)
    return drives


def _frame_order(name: str) -> tuple[list[str | int], str]:
    """Order names by their numbers: frame 9 comes before frame 10."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


def _blocks(sizes: Sequence[int], length: float, least: int) -> list[int]:
    """Return into how many blocks each sequence is cut: the longest blocks are cut first."""
    counts = [1] * len(sizes)
    while sum(counts) < least:
        long = [i for i, size in enumerate(sizes) if size // (counts[i] + 1) >= length]
        if not long:
            break
        counts[max(long, key=lambda i: sizes[i] / counts[i])] += 1
    return counts


def block_length(names: Sequence[str], differences: Floats) -> float:
    r"""Return the length from which on blocks of frames are nearly independent.

    .. math:: 1 + 2.5 (\hat\tau - 1)

    tau is the autocorrelation time of the differences within the sequences, at lags of up to a
    tenth of the images. The factor is from simulations.

    Args:
        names: Paths of the n images.
        differences: (n,) contribution of each image to the difference.
    """
    series = [differences[rows] for rows in _drives(names).values()]
    return 1 + _TIMES * (autocorrelation_time(series, len(names) // LEAST_UNITS) - 1)


def autocorrelation_time(series: Sequence[Floats], lags: int) -> float:
    r"""Estimate the integrated autocorrelation time from above.

    A mean over n frames varies as one over n / tau independent frames.

    .. math:: \hat\tau = \max_{M \le L} \Bigl(1 + 2 \sum_{k=1}^{M} \hat\rho_k\Bigr)
        \Bigl(1 + \frac{(2 M + 1) D}{n}\Bigr) \Bigl(1 + \sqrt{\frac{2 (2 M + 1)}{n}}\Bigr)

    rho_k is the autocorrelation at lag k, pooled over the D series, each about its own mean. The
    second factor corrects for the estimated means (Wolff, Comput. Phys. Commun. 156, 2004, for
    D = 1); the third adds a standard error (Madras and Sokal, J. Stat. Phys. 50, 1988). Unlike
    there, the window is the one with the largest estimate: in a short drive, a slow correlation
    below much noise is easily missed, and blocks that are too short reject too often.

    Args:
        series: Differences of consecutive frames, n in all.
        lags: Longest window L.

    Returns:
        tau in frames, at least 1; 1 for constant series.
    """
    centred = [one - one.mean() for one in series if len(one) > 1]
    count = sum(map(len, centred))
    power = sum(float(one @ one) for one in centred)
    if power <= count * EQUAL**2:
        return 1.0
    longest, total = 1.0, 1.0
    for lag in range(1, lags + 1):
        total += 2 * sum(float(one[lag:] @ one[:-lag]) for one in centred) / power
        width = (2 * lag + 1) / count
        longest = max(longest, total * (1 + width * len(centred)) * (1 + math.sqrt(2 * width)))
    return longest
