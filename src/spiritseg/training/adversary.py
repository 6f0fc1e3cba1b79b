"""Training of a student's adversary, such as the holistic loss's critic, in turn with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spiritseg.losses.loss import Adversary, Outputs
from spiritseg.training.optim import build_optimizer, build_schedule

__all__ = ["AdversaryTraining"]


class AdversaryTraining:
    """Optimizer, schedule and steps of an adversary, in turn with the student's (SKD, eq. 4).

    Outside its own step its weights are frozen: no gradient of the student reaches them, and
    a distributed wrapper of the student leaves them alone. Gradients are averaged over the
    processes here. Losses are computed in float32, so the optimizer needs no loss scaling.

    Args:
        adversary: The term of the loss; it becomes frozen.
    """

    def __init__(self, adversary: Adversary) -> None:
        self.adversary = adversary.requires_grad_(False)
        self._optimizer: torch.optim.Optimizer | None = None
        self._schedule: Any = None
        self._restored: dict[str, Any] | None = None

    def start(self, steps: int) -> None:
        """Make the optimizer on the present device of the adversary.

        Args:
            steps: Length of the stage.
        """
        options = self.adversary.optimizer
        self._optimizer = build_optimizer(options, self.adversary.parameters())
        self._schedule = build_schedule(options, self._optimizer, steps)
        if self._restored is not None:
            self._optimizer.load_state_dict(self._restored["optimizer"])
            if self._schedule is not None:
                self._schedule.load_state_dict(self._restored["schedule"])

    def step(self, outputs: Outputs, seed: int) -> Tensor:
        """Train the adversary by one step.

        Args:
            outputs: Of a batch.
            seed: For the random draws of its loss.

        Returns:
            Its loss, a scalar.
        """
        assert self._optimizer is not None, "start() comes first"
        self.adversary.requires_grad_(True)
        with torch.enable_grad():
            loss = self.adversary.loss(outputs, seed)
            self._optimizer.zero_grad(set_to_none=True)
            with torch.autocast(loss.device.type, enabled=False):
                loss.backward()  # type: ignore[no-untyped-call]
        self._average_gradients()
        self._optimizer.step()
        if self._schedule is not None:
            self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.adversary.requires_grad_(False)
        return loss.detach()

    def training_state(self) -> dict[str, Any]:
        """Return the state of the optimizer and its schedule; weights are in state_dict()."""
        assert self._optimizer is not None, "start() comes first"
        schedule = self._schedule.state_dict() if self._schedule is not None else {}
        return {"optimizer": self._optimizer.state_dict(), "schedule": schedule}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a state from `training_state` at the next `start`."""
        self._restored = state

    def _average_gradients(self) -> None:
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()):
            return
        for parameter in self.adversary.parameters():
            if parameter.grad is not None:
                distributed.all_reduce(parameter.grad)
                parameter.grad /= distributed.get_world_size()
