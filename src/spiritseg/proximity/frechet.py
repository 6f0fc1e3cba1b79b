"""Frechet distance between sets of images, corrected for small samples, with its error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spiritseg.errors import DataError

__all__ = ["Basis", "Estimate", "Moments", "basis", "distance", "frechet", "gain"]

BLOCKS = 32  # runs of consecutive images, left out in turn
DIRECTIONS = 64
_SMALLEST_STD = 1e-6

Means = tuple[Tensor, Tensor]  # first and second moments of a set: (..., d) and (..., d, d)


@dataclass(frozen=True)
class Basis:
    """The directions in which features are compared, from the reference's images alone.

    Args:
        mean: (C,) of its features over all positions.
        directions: (C, d), orthogonal principal directions of its standardised features.
        scale: its variance in them; distances are given as shares of it.
    """

    mean: Tensor
    directions: Tensor
    scale: float


@dataclass(frozen=True)
class Moments:
    """First and second moments of the features of each image of a set.

    Args:
        first: (n, d), the mean over an image's positions.
        second: (n, d, d), the mean of the outer products.
    """

    first: Tensor
    second: Tensor

    def __len__(self) -> int:
        return len(self.first)

    def spread(self) -> float:
        """Return the variance between the images' means, summed over directions."""
        return float(self.first.var(0).sum())


@dataclass(frozen=True)
class Estimate:
    """A figure corrected by the jackknife, the uncorrected one, and its standard error."""

    value: float
    raw: float
    error: float

    @property
    def beyond_noise(self) -> bool:
        """Whether the 95 % interval (normal approximation) excludes 0."""
        return abs(self.value) > 1.96 * self.error

    @property
    def positive(self) -> bool:
        """Whether it is above 0 beyond the noise."""
        return self.value > 1.96 * self.error

    def __str__(self) -> str:
        return f"{100 * self.value:.2f} ± {196 * self.error:.2f}"


def basis(features: Tensor, directions: int = DIRECTIONS) -> Basis:
    """Choose the directions in which features are compared.

    Channels are centred and divided by their standard deviation over all positions of the
    reference's images; the leading principal directions of these are kept.

    Args:
        features: (n, C, p) of the reference: p positions of n images.
        directions: d, how many are kept; at most C.

    Raises:
        DataError: fewer than two images, or features that do not vary.
    """
    if len(features) < 2:
        raise DataError(f"expected 2 or more reference images, got {len(features)}.")
    flat = features.double().permute(1, 0, 2).flatten(1)
    mean, std = flat.mean(1), flat.std(1)
    varies = std > _SMALLEST_STD
    if not bool(varies.any()):
        raise DataError("the teacher's features are the same at all positions of all images.")
    values, vectors = torch.linalg.eigh(torch.corrcoef(flat[varies]).reshape(int(varies.sum()), -1))
    kept = torch.zeros(len(flat), vectors[:, -directions:].shape[1], dtype=torch.float64)
    kept[varies] = vectors[:, -directions:] / std[varies, None]
    return Basis(mean, kept, float(values[-directions:].clamp_min(0).sum()))


def moments(features: Tensor, on: Basis) -> Moments:
    """Reduce the features (n, C, p) of images to their moments in a basis."""
    projected = (features.double() - on.mean[:, None]).mT @ on.directions
    return Moments(projected.mean(1), projected.mT @ projected / projected.shape[1])


def distance(reference: Moments, other: Moments, scale: float = 1.0) -> Estimate:
    r"""Squared Frechet distance between the Gaussians of two sets of images.

    .. math:: d^2 = \|\mu_1 - \mu_2\|^2
        + \mathrm{tr}\left(\Sigma_1 + \Sigma_2 - 2 (\Sigma_1 \Sigma_2)^{1/2}\right)

    (Dowson and Landau 1982; Heusel et al., arXiv:1706.08500). The Gaussian of a set is that of
    the features at all positions of all its images, not of one vector an image: hundreds of
    positions an image give a covariance of full rank from a few images.

    Args:
        reference: the set that is compared with.
        other: the set that is measured.
        scale: divisor of the distance, such as `Basis.scale`.

    Returns:
        The corrected distance (see `jackknife`): about 0 for two samples of one distribution,
        whatever their sizes, and so below 0 by chance.
    """
    return jackknife(lambda r, o: frechet(r, o) / scale, reference, other)


def gain(
    toward: Moments, target: Moments, other: Moments, ratio: float, scale: float = 1.0
) -> Estimate:
    """Return how much closer to `toward` the target gets when a set is mixed in.

    Args:
        toward: Images of where the student will run.
        target: The labelled images.
        other: The set that is mixed in.
        ratio: r = |Dt| : |Dp|, as in training.
        scale: Divisor of distances.
    """
    share = ratio / (1 + ratio)

    def saved(there: Means, alone: Means, added: Means) -> Tensor:
        first, second = (share * a + (1 - share) * b for a, b in zip(alone, added, strict=True))
        return (frechet(there, alone) - frechet(there, (first, second))) / scale

    return jackknife(saved, toward, target, other)


def jackknife(figure: Callable[..., Tensor], *sets: Moments) -> Estimate:
    r"""Correct a figure of several sets of images for their small sizes; estimate its error.

    A plain Frechet distance is too large by about b / n for n images, so that small sets look
    far: Chong and Forsyth (arXiv:1911.07023) draw a line in 1 / n through random subsets of
    several sizes, to infinite n. The jackknife (Quenouille 1956) is the same line through the
    sizes n and n - n/g, without random draws: with theta_j the figure without block j,

    .. math:: \hat\theta = g \theta - (g - 1) \overline{\theta_j}, \qquad
        s^2 = \frac{g - 1}{g} \sum_j (\theta_j - \overline{\theta_j})^2

    for each set; biases and variances add over the sets. Blocks are runs of consecutive images,
    since the frames of one drive are not independent (Kuensch 1989).

    Args:
        figure: from the moments of each set (batched in one of them) to (...) values.
        *sets: the sets; blocks are left out of one at a time.

    Raises:
        DataError: fewer than two images in a set.
    """
    if min(map(len, sets)) < 2:
        raise DataError(f"expected 2 or more images in each set, got {min(map(len, sets))}.")
    means = [(one.first.mean(0), one.second.mean(0)) for one in sets]
    raw = figure(*means)
    bias, variance = torch.zeros(()), torch.zeros(())
    for place, one in enumerate(sets):
        left = figure(*means[:place], _without_blocks(one), *means[place + 1 :])
        blocks, centre = len(left), left.mean()
        bias = bias + (blocks - 1) * (centre - raw)
        variance = variance + (blocks - 1) / blocks * (left - centre).square().sum()
    return Estimate(float(raw - bias), float(raw), float(variance.sqrt()))


def frechet(one: Means, other: Means) -> Tensor:
    """Squared Frechet distance between Gaussians of given moments; batches broadcast.

    The trace of (S1 S2)^(1/2) is the sum of the roots of the eigenvalues of S1 S2.
    """
    covariances = [
        second - first[..., :, None] * first[..., None, :] for first, second in (one, other)
    ]
    roots = torch.linalg.eigvals(covariances[0] @ covariances[1]).real.clamp_min(0).sqrt()
    traces = [matrix.diagonal(0, -2, -1).sum(-1) for matrix in covariances]
    total: Tensor = (one[0] - other[0]).square().sum(-1) + sum(traces) - 2 * roots.sum(-1)
    return total


def _without_blocks(found: Moments) -> Means:
    """Return the moments of the set without each of its blocks, (g, d) and (g, d, d)."""
    n = len(found)
    blocks = min(BLOCKS, n)
    owner = torch.arange(n) * blocks // n
    kept = (owner[None] != torch.arange(blocks)[:, None]).double()
    kept /= kept.sum(1, keepdim=True)
    return kept @ found.first, torch.tensordot(kept, found.second, 1)
