"""Outputs of frozen networks: computed once for each augmented view, kept in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from spiritseg.data.cache import Budget

__all__ = ["FrozenOutputs", "Key"]

Key = tuple[int, int, int]  # (domain, index, view): what an augmented image is a function of
Named = dict[str, Tensor]

_HALF_MAX = torch.finfo(torch.float16).max


class FrozenOutputs:
    """The outputs of a frozen network, half precision, kept by (domain, index, view).

    An output passes through half precision whether it is kept or not, and on a CPU is
    computed image by image, so that a run with the cache, without it, with a smaller one
    or resumed with an empty one sees the same numbers. On other devices the images that
    are missing are computed as one batch, which is faster and may differ in the last bit.

    Args:
        compute: (B, 3, H, W) images to outputs by name, (B, ...) each; it must not depend on
            anything that trains, nor keep a graph.
        budget: memory for what is kept, which several caches may share. When it is full, what
            came first stays: views come round in turn, so replacing would never hit.
        device: where kept outputs lie; by default on the CPU.
    """

    def __init__(
        self, compute: Callable[[Tensor], Named], budget: Budget, device: str = "cpu"
    ) -> None:
        self._compute = compute
        self._budget = budget
        self._device = torch.device(device)
        self._kept: dict[Key, Named] = {}
        self.bytes = 0
        self.computed = 0

    def __call__(self, images: Tensor, keys: Sequence[Key]) -> Named:
        """Return the outputs of a batch of augmented images.

        Args:
            images: (B, 3, H, W).
            keys: what each image is a function of, B of them.

        Returns:
            (B, ...) float32 by name, on the images' device.
        """
        missing = [row for row, key in enumerate(keys) if key not in self._kept]
        fresh = dict(zip(missing, self._fresh(images, missing), strict=True))
        rows = [fresh[row] if row in fresh else self._kept[key] for row, key in enumerate(keys)]
        for row, outputs in fresh.items():
            self._keep(keys[row], outputs)
        return {
            name: torch.stack([row[name].to(images.device) for row in rows]).float()
            for name in rows[0]
        }

    def _fresh(self, images: Tensor, rows: list[int]) -> list[Named]:
        if not rows:
            return []
        self.computed += len(rows)
        found: list[Named] = []
        with torch.no_grad():
            one_by_one = images.device.type == "cpu"
            for some in [[row] for row in rows] if one_by_one else [rows]:
                outputs = {name: _half(x) for name, x in self._compute(images[some]).items()}
                found += [{name: x[i] for name, x in outputs.items()} for i in range(len(some))]
        return found

    def _keep(self, key: Key, outputs: Named) -> None:
        size = sum(x.numel() * x.element_size() for x in outputs.values())
        if key not in self._kept and self._budget.take(size):
            # Clones: a view would hold the whole batch's memory.
            self._kept[key] = {name: x.clone().to(self._device) for name, x in outputs.items()}
            self.bytes += size


def _half(values: Tensor) -> Tensor:
    return values.clamp(-_HALF_MAX, _HALF_MAX).half()
