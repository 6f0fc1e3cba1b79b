"""Which unlabelled images are close to the target: Frechet distances between teacher features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms import v2

from spiritseg.config import Target
from spiritseg.data.items import FilePair, need_folder
from spiritseg.data.layouts import LAYOUTS, detect
from spiritseg.errors import BadImageError, ConfigError, DataError
from spiritseg.images import IMAGE_SUFFIXES, files_below, read_image
from spiritseg.models import Segmenter
from spiritseg.models import teacher as make_teacher
from spiritseg.proximity.frechet import basis, distance, gain, moments
from spiritseg.proximity.ranking import Candidate, Ranking, draw

__all__ = ["Candidate", "Ranking", "draw", "proximity"]

_GRID = (12, 24)  # positions of a feature map that are kept: enough, and bounded memory


@dataclass(frozen=True)
class _Set:
    name: str
    features: Tensor  # (n, C, p)
    skipped: list[str]
    shared: int = 0


def proximity(
    target: str | Path,
    candidates: Sequence[str | Path],
    teacher: str | Segmenter = "efficientnet_lite0",
    weights: str = "pretrained",
    toward: str | Path | None = None,
    *,
    subset: str = "first:64",
    limit: int = 128,
    side: int = 192,
    ratio: float = 0.5,
    out: str | Path | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Ranking:
    """Rank folders of unlabelled images: which is likely to help as proximity domain?

    Enhanced Spirit Distillation (Wu et al., arXiv:2103.13733) mimics on images that are similar
    to the target's and more diverse. Here similarity is a small Frechet distance (`frechet`)
    between a teacher's features, and diversity the variance between images.

    Args:
        target: Folder of the labelled images; labels are not read.
        candidates: Folders of images.
        teacher: Name of a network, as for `spiritseg.teacher`, or a network.
        weights: Weights of the teacher.
        toward: Folder of unlabelled images of the place where the student will run: distances
            are then to them, and gains are how much closer a mixed-in folder brings the target.
        subset: Training images of a labelled target that count, as target.subset.
        limit: Maximum number of images of a folder, evenly spaced by name; 2 or more.
        side: Shorter side to which images are resized, in pixels, 32 or more, so that folders of
            another resolution are not far for that alone.
        ratio: r = |Dt| : |Dp| of the mixture, 0 or more.
        out: Image file of a figure, such as proximity.png; None for no figure.
        progress: Called with a line for each folder.

    Returns:
        The ranking, the closest folder first.

    Raises:
        ConfigError: if a value is out of its range.
        DataError: if a folder is missing, or has fewer than two readable images.
        WeightsError: if the teacher's weights are not available.
    """
    if limit < 2 or side < 32 or ratio < 0:
        raise ConfigError(
            "proximity: expected a limit of 2 or more images, a side of 32 pixels or more and a "
            f"ratio of 0 or more, got {limit}, {side} and {ratio}."
        )
    network = teacher if isinstance(teacher, Segmenter) else make_teacher(teacher, weights)
    roots = [Path(folder).expanduser() for folder in candidates]
    labelled_files = _files(Path(target).expanduser(), subset)
    listings = [_files(root, "all") for root in roots]  # finds a missing folder before the work
    there = _files(Path(toward).expanduser(), "all") if toward is not None else []

    def measured(name: str, files: Sequence[Path]) -> _Set:
        count = min(limit, len(files))
        progress(f"{name}: {count} of {len(files)} images")
        spaced = [files[(2 * i + 1) * len(files) // (2 * count)] for i in range(count)]
        return _features(name, spaced, network.eval(), side)

    labelled = measured(str(target), labelled_files)
    where = measured(str(toward), there) if toward is not None else labelled
    known = {path.resolve() for path in labelled_files}
    others = []
    for name, files in zip(_names(roots), listings, strict=True):
        new = [path for path in files if path.resolve() not in known]
        if not new:
            raise DataError(f"{name}: all of its images are the target's own.")
        others.append(replace(measured(name, new), shared=len(files) - len(new)))
    ranking = _ranked(labelled, where, others, ratio)
    if out is not None:
        draw(ranking, out)
    return ranking


def _ranked(labelled: _Set, where: _Set, others: Sequence[_Set], ratio: float) -> Ranking:
    elsewhere = where is not labelled
    on = basis(where.features)
    reference, own = moments(where.features, on), moments(labelled.features, on)
    measured = []
    for one in others:
        its = moments(one.features, on)
        candidate = Candidate(
            one.name,
            len(its),
            distance(reference, its, on.scale),
            its.spread() / max(own.spread(), 1e-12),
            gain(reference, own, its, ratio, on.scale) if elsewhere else None,
            one.shared,
        )
        measured.append(candidate)
    return Ranking(
        where.name,
        len(reference),
        sorted(measured, key=lambda candidate: candidate.distance.value),
        distance(reference, own, on.scale) if elsewhere else None,
        sorted({path for one in (labelled, where, *others) for path in one.skipped}),
    )


def _files(folder: Path, subset: str) -> list[Path]:
    """List the images of a folder; of a labelled data set, those of its training subset."""
    need_folder(folder, "proximity")
    try:
        layout = LAYOUTS[detect(folder)]
    except DataError:
        files = files_below(folder)
        if not files:
            raise DataError(
                f"no images in {folder}, at any depth. Expected files with one of the suffixes "
                f"{', '.join(IMAGE_SUFFIXES)}."
            ) from None
        return files
    target = Target(root=str(folder), subset=subset)
    try:
        pairs = layout.items(target, folder, ["train"])["train"]
    except DataError:
        if subset != Target.subset:  # the default must not refuse a smaller data set
            raise
        pairs = layout.items(replace(target, subset="all"), folder, ["train"])["train"]
    return [pair.image for pair in pairs if isinstance(pair, FilePair)]


def _names(roots: Sequence[Path]) -> list[str]:
    """Name folders by the last two parts of their paths, where that distinguishes them."""
    short = ["/".join(root.parts[-2:]) for root in roots]
    return short if len(set(short)) == len(short) else [str(root) for root in roots]


@torch.inference_mode()
def _features(name: str, files: Sequence[Path], network: Segmenter, side: int) -> _Set:
    """Extract the features of images, at a bounded number of positions each."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    found: list[Tensor] = []
    skipped: list[str] = []
    for path in files:
        try:
            image = v2.functional.resize(read_image(path), [side], antialias=True)
        except BadImageError:
            skipped.append(str(path))
            continue
        features = network.features((image.float() / 255)[None].to(device)).cpu()
        y, x = (
            torch.linspace(0, length - 1, count).round().long()
            for length, count in zip(features.shape[-2:], _GRID, strict=True)
        )
        found.append(features[:, :, y][:, :, :, x].flatten(2).clone())
    if len(found) < 2:
        raise DataError(f"{name}: expected 2 or more readable images, got {len(found)}.")
    return _Set(name, torch.cat(found), skipped)
