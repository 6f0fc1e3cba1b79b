"""Mimicry of the teacher's features (SD, eq. 2), and their standardisation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import field
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from spiritseg.errors import ConfigError, RunError
from spiritseg.geometry import resize, size_of
from spiritseg.losses.grid import at_least_float32, check_pair, valid_on
from spiritseg.losses.loss import Context, Loss, Outputs, Term, layer_pairs
from spiritseg.options import STRICT, Mapping_, check_options

__all__ = ["LOSS", "Mimicry", "mimicry", "standardise"]

Reduction = Literal["channel_sum", "mean"]


@dataclass(frozen=True, config=STRICT)
class Mimicry:
    """Squared error between feature maps (SD, eq. 2).

    Args:
        weight: Factor of the loss in the stage's sum.
        reduction: channel_sum (sum over channels, mean over positions: the paper) or
            mean (mean over channels too).
        normalise: Whether the teacher's features are divided by their standard deviation per
            channel, computed once over the training images.
        centre: Whether their mean per channel is subtracted as well, for a student that ends
            linearly. It needs normalise.
        layers: Which layer of the student mimics which of the teacher, as module paths
            (extractor.module.stages.1); features, the default, is the extractor's output.
            Several pairs are averaged. Where channels differ, a 1x1 adapter is trained with
            the student and dropped afterwards.
    """

    weight: Annotated[float, Ge(0)] = 1.0
    reduction: Reduction = "channel_sum"
    normalise: bool = False
    centre: bool = False
    layers: Annotated[dict[str, str], Mapping_] = field(default_factory=dict)


def mimicry(
    student_features: Tensor,
    teacher_features: Tensor,
    reduction: Reduction = "channel_sum",
    valid: Tensor | None = None,
) -> Tensor:
    r"""Squared error between the student's and the teacher's feature maps.

    .. math:: L_D = \frac{1}{|V|} \sum_{(b, p) \in V} \sum_c
        \left(y^{AMG}_{b,c,p} - y^{FE}_{b,c,p}\right)^2

    with V the valid positions of the whole batch, B h w where nothing is padded (SD, eq. 2; Wu et
    al., arXiv:2103.13733). The printed equation subtracts y^AMG from itself and calls c a class;
    we read y^AMG - y^FE and channels. The ``paper-*`` recipes use ``"channel_sum"``, the
    equation's letter; with ``"mean"`` the value and the learning rate do not depend on the number
    of channels.

    Args:
        student_features: (B, C, h, w), of any float type; computed in float32 at least. A
            student on another grid is resized bilinearly to the teacher's.
        teacher_features: (B, C, h', w'); no gradient flows into them.
        reduction: ``"channel_sum"`` sums over channels and averages over positions and
            images; ``"mean"`` averages over channels too.
        valid: (B, H, W) bool, False on padding, which is left out; None where everything is
            valid. Brought to the features' grid by nearest neighbour.

    Returns:
        A scalar >= 0; 0 for equal features, and where no position is valid.

    Raises:
        ConfigError: other than four axes, images or channels that differ in number, or an
            unknown reduction.
    """
    check_pair(student_features, teacher_features, "mimicry", channels=True)
    check_options(Mimicry, "mimicry", reduction=reduction)
    teacher = at_least_float32(teacher_features.detach())
    grid = size_of(teacher)
    errors = (resize(at_least_float32(student_features), grid) - teacher).square()
    mask = valid_on(valid, teacher, "mimicry")
    if mask is None:
        mean = errors.mean()
    else:
        kept = errors.masked_fill(~mask[:, None], 0)
        mean = kept.sum() / (mask.sum() * teacher.shape[1]).clamp(min=1)
    return mean * teacher.shape[1] if reduction == "channel_sum" else mean


def standardise(features: Tensor, mean: Tensor, std: Tensor, centre: bool) -> Tensor:
    """Divide features by their standard deviation per channel, after centring if asked.

    A trunk without batch norm has features of arbitrary scale. Leave `centre` out where the
    student ends in a ReLU, which cannot follow below zero. The paper does not standardise.

    Args:
        features: (B, C, h, w).
        mean: (C,), used only with `centre`.
        std: (C,), positive.
        centre: whether the mean is subtracted first.

    Returns:
        (B, C, h, w), of the features' type.

    Raises:
        ConfigError: the statistics have another number of channels.
    """
    if mean.shape != std.shape or std.shape != features.shape[1:2]:
        raise ConfigError(
            f"standardise: expected a mean and a std of {features.shape[1]} channels, got "
            f"{tuple(mean.shape)} and {tuple(std.shape)}. Take the statistics anew."
        )
    scaled = at_least_float32(features)
    if centre:
        scaled = scaled - mean.to(scaled)[:, None, None]
    return (scaled / std.to(scaled)[:, None, None]).to(features.dtype)


class _Term(nn.Module):
    """Mimicry of one layer or several, with the adapters between their channels."""

    def __init__(self, options: Mimicry, context: Context) -> None:
        super().__init__()
        from spiritseg.models.segmenter import adapter

        self.options = options
        self.statistics = context.statistics
        self.pairs = layer_pairs(options.layers)
        ours = context.channels("student", self.pairs.keys())
        theirs = context.channels("teacher", set(self.pairs.values()))
        self.adapters = nn.ModuleList(
            adapter(ours[student], theirs[teacher], context.seed("adapter", number))
            for number, (student, teacher) in enumerate(self.pairs.items())
        )

    def forward(self, outputs: Outputs) -> Tensor:
        reduction, valid = self.options.reduction, outputs.valid
        maps = self.compared(outputs).values()
        return torch.stack([mimicry(*pair, reduction, valid) for pair in maps]).mean()

    def compared(self, outputs: Outputs) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the adapted maps of the student and the standardised ones of the teacher."""
        return {
            student: (
                adapter(outputs.student[student]),
                self._standardised(teacher, outputs.teacher[teacher]),
            )
            for adapter, (student, teacher) in zip(self.adapters, self.pairs.items(), strict=True)
        }

    def _standardised(self, layer: str, features: Tensor) -> Tensor:
        if not self.options.normalise:
            return features
        if layer not in self.statistics:
            raise RunError(f"mimicry with normalise: true needs the statistics of {layer!r}.")
        mean, std = (values.to(features.device) for values in self.statistics[layer])
        return standardise(features, mean, std, centre=self.options.centre)


def _term(options: Mimicry, context: Context) -> Term:
    return _Term(options, context)


def _problems(options: Mimicry, classes: Sequence[str] | None) -> Iterator[str]:
    if options.centre and not options.normalise:
        yield "centre: it needs normalise: true"


def _teacher(options: Mimicry) -> frozenset[str]:
    return frozenset(layer_pairs(options.layers).values())


LOSS = Loss(
    Mimicry,
    _term,
    student=lambda options: frozenset(layer_pairs(options.layers)),
    teacher=_teacher,
    statistics=lambda options: _teacher(options) if options.normalise else frozenset(),
    problems=_problems,
)
