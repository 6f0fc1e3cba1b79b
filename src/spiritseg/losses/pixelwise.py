"""Pixel-wise distillation of class distributions (SKD)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch.nn.functional as F
from annotated_types import Ge, Gt
from pydantic.dataclasses import dataclass
from torch import Tensor

from spiritseg.geometry import resize, size_of
from spiritseg.losses.grid import at_least_float32, check_pair, never_negative, valid_on
from spiritseg.losses.loss import LOGITS, Context, Loss, Outputs, Term
from spiritseg.options import STRICT, Share, check_options, renamed

__all__ = ["LOSS", "Pixelwise", "pixelwise"]

Direction = Literal["teacher_student", "student_teacher"]
Reduction = Literal["mean", "batch_sum"]


@dataclass(frozen=True, config=STRICT)
class Pixelwise:
    """Divergence between the class distributions of each pixel (SKD, eq. 1).

    Args:
        weight: Factor of the loss in the stage's sum.
        temperature: Divisor of both networks' logits.
        direction: teacher_student for KL(teacher || student), or student_teacher, as the paper
            writes it.
        reduction: mean over pixels and images, or batch_sum: summed over the batch and
            divided by the pixels of one image (the released code).
        min_confidence: Pixels where the teacher's highest probability is lower are left out; each
            of several devices divides by its own number of pixels.
    """

    weight: Annotated[float, Ge(0)] = 1.0
    temperature: Annotated[float, Gt(0)] = 1.0
    direction: Direction = "teacher_student"
    reduction: Reduction = "mean"
    min_confidence: Share = 0.0

    _old = renamed(confidence="min_confidence")


def pixelwise(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    direction: Direction = "teacher_student",
    valid: Tensor | None = None,
    reduction: Reduction = "mean",
    min_confidence: float = 0.0,
) -> Tensor:
    r"""Kullback-Leibler divergence between the class distributions of each pixel.

    .. math:: L_{pi} = \frac{\tau^2}{|V|} \sum_{p \in V}
        \mathrm{KL}\left(\mathrm{softmax}(z^t_p / \tau) \,\|\, \mathrm{softmax}(z^s_p / \tau)\right)

    with V the valid pixels of the whole batch (SKD, Liu et al., arXiv:1903.04197, eq. 1).
    The paper writes KL(student || teacher), our ``"student_teacher"``. The default is Hinton's
    direction, which has the gradient of the cross-entropy in the authors' released code.
    That code divides by the pixels of one image only, our ``"batch_sum"``: its weight grows
    with the batch.

    Args:
        student_logits: (B, K, h, w), of any float type; computed in float32 at least. A student
            on another grid is resized bilinearly to the teacher's.
        teacher_logits: (B, K, H', W'); no gradient flows into them.
        temperature: tau > 0; tau^2 keeps the size of the gradient.
        direction: ``"teacher_student"`` for KL(teacher || student), or the other way round.
        valid: (B, H, W) bool, False on padding only; unlabelled pixels distil too. Resized by
            nearest neighbour.
        reduction: ``"mean"`` over valid pixels and images, or ``"batch_sum"``: valid pixels
            summed, divided by the pixels of one image.
        min_confidence: c in [0, 1]: V holds only pixels where the teacher's highest probability,
            at temperature 1, is c or more.

    Returns:
        A scalar >= 0; exactly 0 for equal logits, and where no pixel is valid.

    Raises:
        ConfigError: shapes that cannot be compared, a temperature that is not positive, a
            confidence outside [0, 1], or an unknown direction or reduction.
    """
    check_pair(student_logits, teacher_logits, "pixelwise", channels=True)
    options = {"direction": direction, "reduction": reduction, "min_confidence": min_confidence}
    check_options(Pixelwise, "pixelwise", temperature=temperature, **options)
    teacher = at_least_float32(teacher_logits.detach())
    grid = size_of(teacher)
    student = resize(at_least_float32(student_logits), grid)
    mask = valid_on(valid, teacher, "pixelwise")
    if min_confidence:
        sure = ~(teacher.softmax(dim=1).amax(dim=1) < min_confidence)  # NaN is kept, to be seen
        mask = sure if mask is None else mask & sure
    divergence = _divergence(student / temperature, teacher / temperature, direction)
    if mask is not None:
        divergence = divergence.masked_fill(~mask & ~divergence.isnan(), 0)  # NaN is not hidden
    if reduction == "mean":
        pixels: int | Tensor = divergence.numel() if mask is None else mask.sum().clamp(min=1)
    else:
        pixels = grid[0] * grid[1]
    return divergence.sum() * temperature**2 / pixels


def _divergence(student: Tensor, teacher: Tensor, direction: Direction) -> Tensor:
    """KL of each pixel, (B, h, w)."""
    log_s, log_t = F.log_softmax(student, dim=1), F.log_softmax(teacher, dim=1)
    if direction == "teacher_student":
        p, log_p, log_q = log_t.exp(), log_t, log_s
    else:
        p, log_p, log_q = log_s.exp(), log_s, log_t
    # 0 log 0 = 0, also for logits of -inf, with a finite gradient; NaN is none of these.
    return never_negative((p * (log_p - log_q).masked_fill(p == 0, 0)).sum(dim=1))


def _term(options: Pixelwise, context: Context) -> Term:
    def compute(outputs: Outputs) -> Tensor:
        return pixelwise(
            outputs.student[LOGITS],
            outputs.teacher[LOGITS],
            temperature=options.temperature,
            direction=options.direction,
            valid=outputs.valid,
            reduction=options.reduction,
            min_confidence=options.min_confidence,
        )

    return compute


def _logits(options: Pixelwise) -> frozenset[str]:
    return frozenset({LOGITS})


LOSS = Loss(Pixelwise, _term, student=_logits, teacher=_logits)
