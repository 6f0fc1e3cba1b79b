"""Holistic distillation: the student's maps against a critic that knows the teacher's (SKD)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from pydantic.dataclasses import dataclass
from torch import Tensor

from spiritseg.errors import ConfigError, DivergedError
from spiritseg.geometry import resize, size_of
from spiritseg.losses.grid import at_least_float32, check_pair, valid_on
from spiritseg.losses.loss import LOGITS, Adversary, Context, Loss, Outputs
from spiritseg.options import STRICT, Optimizer, check_options, renamed

__all__ = ["LOSS", "Holistic", "Scorer", "critic_loss", "holistic", "maps_of", "slope_penalty"]

Kind = Literal["wgan-gp", "hinge"]
Maps = Literal["probabilities", "logits"]
Scorer = Callable[[Tensor, Tensor | None], Tensor]  # maps (B, K, h, w), images to scores (B,)


@dataclass(frozen=True, config=STRICT)
class Holistic:
    """Score of the student's maps by a critic that knows the teacher's (SKD, eq. 4).

    Args:
        weight: Factor of the loss in the stage's sum.
        kind: wgan-gp (the paper) or hinge.
        maps: Input of the critic: probabilities or logits (the released code).
        conditioned: Whether the critic sees the image too (the paper).
        spectral_norm: Whether the critic's weights are normalised (the released code).
        width: Channels of the critic's first convolution.
        gradient_penalty: Factor of the penalty on the critic's slope; 0 leaves it out.
        divergence_limit: Absolute value of the critic's loss at which it counts as diverged.
        optimizer: Optimizer of the critic, which steps once for each step of the student.
    """

    weight: Annotated[float, Ge(0)] = 0.1
    kind: Kind = "wgan-gp"
    maps: Maps = "probabilities"
    conditioned: bool = True
    spectral_norm: bool = False
    width: Annotated[int, Ge(1)] = 64
    gradient_penalty: Annotated[float, Ge(0)] = 10.0
    divergence_limit: Annotated[float, Gt(0)] = 1e4
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer("adam", lr=4e-4, weight_decay=0.0, schedule="constant")
    )

    _old = renamed(limit="divergence_limit")


def maps_of(logits: Tensor, kind: Maps = "probabilities") -> Tensor:
    """Turn logits into what a critic sees.

    The paper gives its critic segmentation maps: class probabilities. The authors' released
    code gives it the logits, whose scale the student is then free to change.

    Args:
        logits: (B, K, h, w), of any float type.
        kind: ``"probabilities"``, a softmax over the classes, or ``"logits"``.

    Returns:
        (B, K, h, w), in float32 at least.

    Raises:
        ConfigError: an unknown kind.
    """
    check_options(Holistic, "holistic", maps=kind)
    logits = at_least_float32(logits)
    return logits.softmax(dim=1) if kind == "probabilities" else logits


def holistic(critic: Scorer, student_maps: Tensor, images: Tensor | None = None) -> Tensor:
    r"""Score the student's maps: its part of the game with the critic, for both kinds.

    .. math:: L_{ho} = -\mathbb{E}_{S}\left[D(S \mid I)\right]

    (SKD, Liu et al., arXiv:1903.04197, eq. 4, whose sign is the critic's: the student
    makes its own term smallest by raising D of its maps.) It is unbounded either way, and
    only its gradient means anything.

    Args:
        critic: D, maps and images to scores (B,). Freeze its parameters before, or the
            gradient flows into them too.
        student_maps: (B, K, h, w), of `maps_of`.
        images: (B, 3, H, W) for a conditioned critic.

    Returns:
        A scalar.

    Raises:
        ConfigError: the critic gives other than one score an image.
    """
    return -_scores(critic, student_maps, images).mean()


def critic_loss(
    critic: Scorer,
    student_maps: Tensor,
    teacher_maps: Tensor,
    images: Tensor | None = None,
    kind: Kind = "wgan-gp",
    gradient_penalty: float = 10.0,
    *,
    seed: int,
) -> Tensor:
    r"""Compute what the critic makes small: it tells the teacher's maps from the student's.

    .. math::
        L_D &= \mathbb{E}_{S}[D(S \mid I)] - \mathbb{E}_{T}[D(T \mid I)] + \lambda_{gp} P
            &\text{wgan-gp} \\
        L_D &= \mathbb{E}_{T}[(1 - D(T \mid I))_+] + \mathbb{E}_{S}[(1 + D(S \mid I))_+]
            + \lambda_{gp} P &\text{hinge}

    with P of `slope_penalty` (SKD, Liu et al., arXiv:1903.04197, eq. 4, by the WGAN-GP of
    Gulrajani et al., arXiv:1704.00028; the hinge is SAGAN's, arXiv:1805.08318). Its real
    samples are the teacher's maps, not the labels', so that it works on unlabelled images.

    The authors' released code penalises the slope with wgan-gp only, shows the critic logits
    without the image, and multiplies this loss by the student's weight of 0.1; we do not
    scale it. There the student steps first, then the critic; what comes first is the
    caller's choice.

    Args:
        critic: D, maps and images to scores (B,). It is called on student's and teacher's maps
            at once, and once more for the penalty.
        student_maps: (B, K, h, w), of `maps_of`; no gradient flows into them. On another grid
            than the teacher's they are resized bilinearly to it.
        teacher_maps: (B, K, h', w'), of `maps_of`; no gradient flows into them.
        images: (B, 3, H, W) for a conditioned critic.
        kind: ``"wgan-gp"`` or ``"hinge"``.
        gradient_penalty: lambda_gp >= 0; 0 leaves the penalty out, which wgan-gp needs unless
            the critic bounds its slope otherwise.
        seed: of the points at which the slope is penalised.

    Returns:
        A scalar.

    Raises:
        ConfigError: maps that cannot be compared, an unknown kind, a negative penalty, or a
            critic that gives other than one score an image.
    """
    check_options(Holistic, "holistic", kind=kind, gradient_penalty=gradient_penalty)
    student, teacher = _comparable(student_maps, teacher_maps)
    # together, so that a critic whose weights move with each pass judges both by the same
    twice = None if images is None else torch.cat([images, images])
    fake, real = _scores(critic, torch.cat([student, teacher]), twice).chunk(2)
    if kind == "wgan-gp":
        loss = fake.mean() - real.mean()
    else:
        loss = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    if gradient_penalty > 0:
        penalty = slope_penalty(critic, student, teacher, images, seed=seed)
        loss = loss + gradient_penalty * penalty
    return loss


def slope_penalty(
    critic: Scorer,
    student_maps: Tensor,
    teacher_maps: Tensor,
    images: Tensor | None = None,
    *,
    seed: int,
) -> Tensor:
    r"""Penalise a critic whose slope is other than 1 between the student's and teacher's maps.

    .. math:: P = \frac{1}{B} \sum_b
        \left(\left\|\nabla_{x} D(x_b \mid I_b)\right\|_2 - 1\right)^2, \qquad
        x_b = \epsilon_b T_b + (1 - \epsilon_b) S_b, \quad \epsilon_b \sim U[0, 1)

    (WGAN-GP, Gulrajani et al., arXiv:1704.00028, eq. 3.) It is computed in float32 at least,
    under autocast too: it is differentiated twice. The image is a condition, not a
    sample: no slope is taken along it.

    Args:
        critic: D, maps and images to scores (B,), each by its own map.
        student_maps: (B, K, h, w); no gradient flows into them.
        teacher_maps: (B, K, h', w'); no gradient flows into them.
        images: (B, 3, H, W) for a conditioned critic.
        seed: of the epsilons, drawn on the CPU, so that devices agree.

    Returns:
        A scalar >= 0, which can be differentiated by the critic's parameters.

    Raises:
        ConfigError: maps that cannot be compared, or a critic that gives other than one score
            an image.
    """
    student, teacher = _comparable(student_maps, teacher_maps)
    epsilon = _epsilons(len(teacher), seed).to(teacher)[:, None, None, None]
    with torch.enable_grad(), torch.autocast(teacher.device.type, enabled=False):
        points = (epsilon * teacher + (1 - epsilon) * student).requires_grad_()
        scores = _scores(critic, points, images)
        (slopes,) = torch.autograd.grad(scores.sum(), points, create_graph=True)
        # vector_norm has a gradient (0) where the slope is 0; the root of a sum has none
        lengths: Tensor = torch.linalg.vector_norm(slopes.flatten(1), dim=1)
        return (lengths - 1).square().mean()


def _comparable(student_maps: Tensor, teacher_maps: Tensor) -> tuple[Tensor, Tensor]:
    """Detach both, bring them to one type and to the teacher's grid."""
    check_pair(student_maps, teacher_maps, "holistic", channels=True)
    student, teacher = (at_least_float32(x.detach()) for x in (student_maps, teacher_maps))
    common = torch.promote_types(student.dtype, teacher.dtype)
    grid = size_of(teacher)
    return resize(student.to(common), grid), teacher.to(common)


def _epsilons(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, generator=generator, dtype=torch.float64)


def _scores(critic: Scorer, maps: Tensor, images: Tensor | None) -> Tensor:
    scores = at_least_float32(critic(maps, images))
    if scores.shape != maps.shape[:1]:
        raise ConfigError(
            f"holistic: expected a critic to give one score an image, ({len(maps)},), got "
            f"{tuple(scores.shape)}. Average its patch of scores."
        )
    return scores


class _Term(Adversary):
    """The student's term and its critic.

    The critic computes in float32 whatever the precision of the student, since its penalty
    is a derivative of a derivative.
    """

    def __init__(self, options: Holistic, context: Context) -> None:
        super().__init__(options.optimizer)
        from spiritseg.models.critic import critic

        self.options = options
        self.critic = critic(
            context.channels("student", {LOGITS})[LOGITS],
            options.conditioned,
            options.width,
            options.spectral_norm,
            context.seed("critic"),
        )

    def loss(self, outputs: Outputs, seed: int) -> Tensor:
        student, teacher = outputs.student[LOGITS].detach(), outputs.teacher[LOGITS].detach()
        with torch.autocast(student.device.type, enabled=False):
            loss = critic_loss(
                self.critic,
                self._maps(student, outputs.valid),
                self._maps(teacher, outputs.valid),
                self._condition(outputs.images),
                kind=self.options.kind,
                gradient_penalty=self.options.gradient_penalty,
                seed=seed,
            )
        self._refuse_diverged(float(loss.detach()))
        return loss

    def forward(self, outputs: Outputs) -> Tensor:
        logits = outputs.student[LOGITS]
        with torch.autocast(logits.device.type, enabled=False):
            maps = self._maps(logits, outputs.valid)
            return holistic(self.critic, maps, self._condition(outputs.images))

    def _maps(self, logits: Tensor, valid: Tensor) -> Tensor:
        """Return the critic's input; on padding nothing tells student and teacher apart."""
        maps = maps_of(logits, self.options.maps)
        mask = valid_on(valid, maps, "holistic")
        return maps if mask is None else maps.masked_fill(~mask[:, None], 0)

    def _condition(self, images: Tensor) -> Tensor | None:
        return images.float() if self.options.conditioned else None

    def _refuse_diverged(self, loss: float) -> None:
        if not abs(loss) <= self.options.divergence_limit:  # NaN too
            raise DivergedError(
                f"the critic of the holistic loss has diverged: its loss is {loss:g}, the limit "
                f"{self.options.divergence_limit:g}. The checkpoints before it are kept. Lower its "
                f"optimizer.lr (now {self.optimizer.lr:g}), raise gradient_penalty (now "
                f"{self.options.gradient_penalty:g}), or leave the holistic loss out."
            )


def _logits(options: Holistic) -> frozenset[str]:
    return frozenset({LOGITS})


LOSS = Loss(Holistic, _Term, student=_logits, teacher=_logits)
