"""Several networks as one teacher: the mean of their class distributions."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from spiritseg.config import Stage
from spiritseg.errors import ConfigError
from spiritseg.models.segmenter import Segmenter

__all__ = ["Ensemble", "stage_teacher"]


class Ensemble(Segmenter):
    r"""Networks whose class distributions are averaged.

    .. math:: z = \tau \log \frac{1}{M} \sum_m \mathrm{softmax}(z_m / \tau)

    so that softmax(z / tau) is the mean of the tempered distributions, which a loss at the
    temperature tau distils. Features and inner layers are those of the first member:
    the others may have other widths and grids.

    Args:
        members: Two networks or more, with the same classes. They are not copied: training
            them changes the ensemble too.
        temperature: Temperature tau > 0 of the loss that uses the logits.

    Raises:
        ConfigError: if there are fewer than two.

    Source: Lakshminarayanan et al., arXiv:1612.01474, section 2.4; distilled into one network
    as Hinton et al., arXiv:1503.02531.
    """

    def __init__(self, members: Sequence[Segmenter], temperature: float = 1.0) -> None:
        if len(members) < 2:
            raise ConfigError(f"Ensemble: expected two networks or more, got {len(members)}.")
        first = members[0]
        super().__init__(first.extractor, first.head)
        self.members = nn.ModuleList(members)
        self.temperature = temperature

    def forward(self, images: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Return the logits z (B, K, H', W'), log probabilities at tau = 1; see `Segmenter`."""
        return self._mean([member(images, size) for member in self.members])

    def outputs(self, images: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """Compute several outputs; see `Segmenter.outputs`. Other layers are the first's."""
        first, *others = self.members
        assert isinstance(first, Segmenter)
        found = first.outputs(images, wanted)
        if "logits" in wanted:
            logits = [found["logits"], *(other(images) for other in others)]
            found["logits"] = self._mean(logits)
        return found

    def _mean(self, logits: Sequence[Tensor]) -> Tensor:
        tau = self.temperature
        log_p = torch.stack([(z.float() / tau).log_softmax(dim=1) for z in logits])
        return tau * (log_p.logsumexp(dim=0) - math.log(len(logits)))


def stage_teacher(stage: Stage, networks: Mapping[str, Segmenter]) -> Segmenter | None:
    """Return the teacher of a stage: one network, an `Ensemble` of several, or None."""
    if stage.teacher is None:
        return None
    first = networks[stage.teacher]
    if not stage.co_teachers:
        return first
    # That of the first loss that has one; losses without one do not read tempered logits.
    tempered = (getattr(options, "temperature", None) for options in stage.losses.values())
    members = [first, *(networks[name] for name in stage.co_teachers)]
    return Ensemble(members, next((tau for tau in tempered if tau is not None), 1.0))
