"""Training the critic of the holistic loss, turn by turn with the student."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spiritseg.config import Holistic
from spiritseg.errors import DivergedError
from spiritseg.losses.grid import valid_on
from spiritseg.losses.holistic import critic_loss, holistic, maps_of
from spiritseg.models.critic import critic
from spiritseg.training.optim import build_optimizer, build_schedule

__all__ = ["CriticTraining"]


class CriticTraining(nn.Module):
    """The critic with its own optimizer: one step of it, then one of the student (SKD, eq. 4).

    The critic computes in float32 whatever the precision of the student, since its penalty
    is a derivative of a derivative; so its optimizer needs no loss scaling. Outside its own
    step its weights are frozen: no gradient of the student reaches them, and a distributed
    wrapper of the student leaves them alone. Its gradients are averaged over processes here.

    Args:
        config: the holistic loss of the stage.
        num_classes: K of the maps.
        seed: of the critic's fresh weights.
    """

    def __init__(self, config: Holistic, num_classes: int, seed: int) -> None:
        super().__init__()
        self.config = config
        self.critic = critic(
            num_classes, config.conditioned, config.width, config.spectral_norm, seed
        ).requires_grad_(False)
        self._optimizer: torch.optim.Optimizer | None = None
        self._schedule: Any = None
        self._restored: dict[str, Any] | None = None

    def start(self, steps: int) -> None:
        """Make the optimizer, on whatever device the critic is by now.

        Args:
            steps: length of the stage.
        """
        self._optimizer = build_optimizer(self.config.optimizer, self.critic.parameters())
        self._schedule = build_schedule(self.config.optimizer, self._optimizer, steps)
        if self._restored is not None:
            self._optimizer.load_state_dict(self._restored["optimizer"])
            if self._schedule is not None:
                self._schedule.load_state_dict(self._restored["schedule"])

    def step(
        self, student: Tensor, teacher: Tensor, images: Tensor, valid: Tensor, seed: int
    ) -> Tensor:
        """Train the critic by one step.

        Args:
            student: logits (B, K, h, w); no gradient flows into them.
            teacher: logits (B, K, H', W').
            images: (B, 3, h, w).
            valid: (B, H, W) bool, False on padding, where all maps are 0.
            seed: of the points at which the slope is penalised.

        Returns:
            The critic's loss.

        Raises:
            DivergedError: it is not finite, or larger than the limit.
        """
        assert self._optimizer is not None, "start() comes first"
        self.critic.requires_grad_(True)
        with torch.enable_grad(), torch.autocast(student.device.type, enabled=False):
            loss = critic_loss(
                self.critic,
                self._maps(student.detach(), valid),
                self._maps(teacher.detach(), valid),
                self._seen(images),
                kind=self.config.kind,
                gradient_penalty=self.config.gradient_penalty,
                seed=seed,
            )
            self._refuse(float(loss.detach()))
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
        self._average_gradients()
        self._optimizer.step()
        if self._schedule is not None:
            self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.critic.requires_grad_(False)
        return loss.detach()

    def forward(self, student: Tensor, images: Tensor, valid: Tensor) -> Tensor:
        """Compute the student's term from its logits (B, K, h, w), the images and what is valid."""
        with torch.autocast(student.device.type, enabled=False):
            return holistic(self.critic, self._maps(student, valid), self._seen(images))

    def _maps(self, logits: Tensor, valid: Tensor) -> Tensor:
        """Return what the critic sees: on padding nothing tells student and teacher apart."""
        maps = maps_of(logits, self.config.maps)
        mask = valid_on(valid, maps, "holistic")
        return maps if mask is None else maps.masked_fill(~mask[:, None], 0)

    def training_state(self) -> dict[str, Any]:
        """Return the state of the optimizer and its schedule; weights are in state_dict()."""
        assert self._optimizer is not None, "start() comes first"
        schedule = self._schedule.state_dict() if self._schedule is not None else {}
        return {"optimizer": self._optimizer.state_dict(), "schedule": schedule}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a state from `training_state` at the next `start`."""
        self._restored = state

    def _seen(self, images: Tensor) -> Tensor | None:
        return images.float() if self.config.conditioned else None

    def _refuse(self, loss: float) -> None:
        if not abs(loss) <= self.config.limit:  # NaN too
            raise DivergedError(
                f"the critic of the holistic loss has diverged: its loss is {loss:g}, the limit "
                f"{self.config.limit:g}. The checkpoints before it are kept. Lower its "
                f"optimizer.lr (now {self.config.optimizer.lr:g}), raise gradient_penalty (now "
                f"{self.config.gradient_penalty:g}), or leave the holistic loss out."
            )

    def _average_gradients(self) -> None:
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()):
            return
        for parameter in self.critic.parameters():
            if parameter.grad is not None:
                distributed.all_reduce(parameter.grad)
                parameter.grad /= distributed.get_world_size()
