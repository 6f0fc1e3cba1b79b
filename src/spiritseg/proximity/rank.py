"""Ranks folders of unlabelled images by how near their teacher features are to the target's."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms import v2

from spiritseg.config import Target
from spiritseg.data.items import FilePair, need_folder
from spiritseg.data.layouts import detect, split_files
from spiritseg.data.subsets import evenly
from spiritseg.errors import BadImageError, ConfigError, DataError
from spiritseg.images import IMAGE_SUFFIXES, find_images, read_image
from spiritseg.models import Segmenter
from spiritseg.models import teacher as make_teacher
from spiritseg.proximity.frechet import (
    Estimate,
    Moments,
    basis,
    closer,
    distance,
    gain,
    moments,
)

__all__ = ["Candidate", "Ranking", "proximity"]

_FAR = 0.25  # of the reference's variance: another kind of picture
_POOLED = (12, 24)  # most positions of a feature map that are kept: enough, and bounded memory


@dataclass(frozen=True)
class Candidate:
    """One folder of unlabelled images, measured.

    Args:
        name: what it is called.
        images: how many of its images were looked at.
        distance: squared Frechet distance of its features to the reference's, corrected, as a
            share of the reference's variance over positions.
        diversity: variance between its images over that between the target's; above 1 it is
            more varied.
        gain: with `toward`: by how much mixing it in brings the target nearer, in the same unit.
        shared: images that were left out since they are the target's own.
        advice: what to make of it, in words.
    """

    name: str
    images: int
    distance: Estimate
    diversity: float
    gain: Estimate | None = None
    shared: int = 0
    advice: str = ""


@dataclass(frozen=True)
class Ranking:
    """Folders by their distance to the reference, the nearest first.

    Args:
        reference: the folder that distances are measured from.
        images: how many images of it were looked at.
        candidates: the measured folders.
        apart: how much farther each is than the one before it; one fewer.
        target: with `toward`: the distance of the target itself.
        skipped: unreadable files that were left out.
    """

    reference: str
    images: int
    candidates: list[Candidate]
    apart: list[Estimate]
    target: Estimate | None = None
    skipped: list[str] = field(default_factory=list)

    @property
    def best(self) -> Candidate | None:
        """The folder that is most likely to help; None where none is."""
        if self.target is not None:
            helping = [c for c in self.candidates if c.gain is not None and _helps(c.gain)]
            return max(helping, key=lambda c: c.gain.value if c.gain else 0.0, default=None)
        near = [c for c in self.candidates if c.distance.value < _FAR and _is_new(c)]
        return near[0] if near else None


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
    progress: Callable[[str], None] = lambda line: None,
) -> Ranking:
    """Rank folders of unlabelled images: which is likely to help as proximity domain?

    Enhanced Spirit Distillation (Wu et al., arXiv:2103.13733) mimics on images that are similar
    to the target's and more diverse. Here similarity is a small Frechet distance (`frechet`)
    between a teacher's features, and diversity the variance between images. Where the student
    will run on other images than it is trained on, `toward` takes unlabelled ones of those: the
    distances are then to them, and the gain says whether a folder, mixed in at the ratio, brings
    the target nearer to them.

    Args:
        target: folder of the labelled images; labels are not read.
        candidates: folders of images.
        teacher: name of a network, as for `spiritseg.teacher`, or a network.
        weights: of the teacher.
        toward: folder of unlabelled images of the place where the student will run.
        subset: training images of a labelled target that count, as target.subset.
        limit: images of a folder that are looked at, evenly spaced by name.
        side: of the shorter side to which images are resized, in pixels: folders of another
            resolution are not far for that alone.
        ratio: r = |Dt| : |Dp| of the mixture.
        progress: is told what is being done.

    Returns:
        The ranking, nearest first.

    Raises:
        ConfigError: a value out of its range.
        DataError: a missing folder, or one with fewer than two readable images.
        WeightsError: the teacher's weights cannot be had.
    """
    if limit < 2 or side < 32 or ratio < 0:
        raise ConfigError(
            "proximity: expected a limit of 2 or more images, a side of 32 pixels or more and a "
            f"ratio of 0 or more, got {limit}, {side} and {ratio}."
        )
    network = teacher if isinstance(teacher, Segmenter) else make_teacher(teacher, weights)
    network = network.eval()

    roots = [Path(folder).expanduser() for folder in candidates]
    names = _names(roots)

    def opened(name: str, files: Sequence[Path]) -> _Set:
        progress(f"{name}: {min(limit, len(files))} of {len(files)} images")
        return _features(name, [files[i] for i in evenly(limit, len(files), True)], network, side)

    labelled_files = _files(Path(target).expanduser(), subset)
    known = {path.resolve() for path in labelled_files}
    listings = [_files(root, "all") for root in roots]  # a missing folder is told before the work
    there = _files(Path(toward).expanduser(), "all") if toward is not None else []
    labelled = opened(str(target), labelled_files)
    where = opened(str(toward), there) if toward is not None else labelled
    others = []
    for name, files in zip(names, listings, strict=True):
        new = [path for path in files if path.resolve() not in known]
        if not new:
            raise DataError(f"{name}: all of its images are the target's own.")
        others.append(replace(opened(name, new), shared=len(files) - len(new)))
    return _ranked(labelled, where, others, ratio)


def _ranked(labelled: _Set, where: _Set, others: Sequence[_Set], ratio: float) -> Ranking:
    elsewhere = where is not labelled
    on = basis(where.features)
    reference, own = moments(where.features, on), moments(labelled.features, on)
    measured: list[tuple[Candidate, Moments]] = []
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
        measured.append((candidate, its))
    measured.sort(key=lambda pair: pair[0].distance.value)
    pairs = itertools.pairwise(measured)
    ranking = Ranking(
        where.name,
        len(reference),
        [candidate for candidate, _ in measured],
        [closer(reference, near, far, on.scale) for (_, near), (_, far) in pairs],
        distance(reference, own, on.scale) if elsewhere else None,
        sorted({path for one in (labelled, where, *others) for path in one.skipped}),
    )
    return _advised(ranking)


def _advised(ranking: Ranking) -> Ranking:
    best = ranking.best
    return replace(
        ranking, candidates=[replace(c, advice=_advice(c, c is best)) for c in ranking.candidates]
    )


def _advice(one: Candidate, best: bool) -> str:
    if one.gain is not None:
        if _helps(one.gain):
            return "likely to help" if best else "may help"
        worse = one.gain.beyond_noise
        return "leads away: not likely to help" if worse else "no gain beyond the noise"
    if one.distance.value >= _FAR:
        return "another kind of picture: not likely to help"
    if not _is_new(one):
        return "more of the same: cannot be told from the target"
    varied = "similar, and more varied" if one.diversity > 1 else "similar, but less varied"
    return f"{varied}: likely to help" if best and one.diversity > 1 else varied


def _helps(one: Estimate) -> bool:
    return one.value > 0 and one.beyond_noise


def _is_new(one: Candidate) -> bool:
    return one.distance.value > 0 and one.distance.beyond_noise


def _files(folder: Path, subset: str) -> list[Path]:
    """List the images of a folder; of a labelled data set, those of its training subset."""
    need_folder(folder, "proximity")
    try:
        layout = detect(folder)
    except DataError:
        files = find_images(folder)
        if not files:
            raise DataError(
                f"no images in {folder}, at any depth. Expected files with one of the suffixes "
                f"{', '.join(IMAGE_SUFFIXES)}."
            ) from None
        return files
    try:
        return _training(folder, layout, subset)
    except DataError:
        if subset != Target.subset:  # the default must not refuse a smaller data set
            raise
        return _training(folder, layout, "all")


def _training(folder: Path, layout: str, subset: str) -> list[Path]:
    target = Target(root=str(folder), subset=subset)
    items = split_files(target, folder, layout, ["train"])["train"]
    return [item.image for item in items if isinstance(item, FilePair)]


def _names(roots: Sequence[Path]) -> list[str]:
    """Call folders by the last two parts of their paths, where that tells them apart."""
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
            image = read_image(path)
        except BadImageError:
            skipped.append(str(path))
            continue
        small = v2.functional.resize(image, [side], antialias=True)
        features = network.features((small.float() / 255)[None].to(device)).cpu()
        found.append(_at_positions(features))
    if len(found) < 2:
        raise DataError(f"{name}: expected 2 or more readable images, got {len(found)}.")
    return _Set(name, torch.cat(found), skipped)


def _at_positions(features: Tensor) -> Tensor:
    """Take the features (1, C, h, w) at a fixed grid of positions, (1, C, p)."""
    rows, columns = _POOLED
    y = torch.linspace(0, features.shape[-2] - 1, rows).round().long()
    x = torch.linspace(0, features.shape[-1] - 1, columns).round().long()
    return features[:, :, y][:, :, :, x].flatten(2).clone()
