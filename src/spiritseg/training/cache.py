"""Outputs of frozen parts: computed once for each augmented view, kept in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["FrozenOutputs", "Key"]

Key = tuple[int, int, int]  # (domain, index, view): what an augmented image is a function of

_HALF_MAX = torch.finfo(torch.float16).max


class FrozenOutputs:
    """The outputs of a frozen network, half precision, kept by (domain, index, view).

    An output passes through half precision whether it is kept or not, and on a CPU is
    computed image by image, so that a run with the cache, without it, with a smaller one
    or resumed with an empty one sees the same numbers. On other devices the images that
    are missing are computed as one batch, which is faster and may differ in the last bit.

    Args:
        compute: (B, 3, H, W) images to (B, C, h, w); it must not depend on anything that
            trains, nor keep a graph.
        budget_mib: memory for what is kept, in MiB; 0 keeps nothing. When it is full, what
            came first stays: views come round in turn, so replacing would never hit.
        device: where kept outputs lie; by default on the CPU.
    """

    def __init__(
        self, compute: Callable[[Tensor], Tensor], budget_mib: int, device: str = "cpu"
    ) -> None:
        self._compute = compute
        self._budget = budget_mib * 2**20
        self._device = torch.device(device)
        self._kept: dict[Key, Tensor] = {}
        self.bytes = 0
        self.computed = 0

    def __call__(self, images: Tensor, keys: Sequence[Key]) -> Tensor:
        """Return the outputs of a batch of augmented images.

        Args:
            images: (B, 3, H, W).
            keys: what each image is a function of, B of them.

        Returns:
            (B, C, h, w) float32, on the images' device.
        """
        missing = [row for row, key in enumerate(keys) if key not in self._kept]
        fresh = dict(zip(missing, self._fresh(images, missing), strict=True))
        rows = [
            fresh[row] if row in fresh else self._kept[key].to(images.device)
            for row, key in enumerate(keys)
        ]
        for row, output in fresh.items():
            self._keep(keys[row], output)
        return torch.stack(rows).float()

    def _fresh(self, images: Tensor, rows: list[int]) -> list[Tensor]:
        if not rows:
            return []
        self.computed += len(rows)
        with torch.no_grad():
            if images.device.type == "cpu":
                outputs = [self._compute(images[row : row + 1])[0] for row in rows]
            else:
                outputs = list(self._compute(images[rows]))
        return [output.clamp(-_HALF_MAX, _HALF_MAX).half() for output in outputs]

    def _keep(self, key: Key, output: Tensor) -> None:
        size = output.numel() * output.element_size()
        if key not in self._kept and self.bytes + size <= self._budget:
            # A clone: a view would hold the whole batch's memory.
            self._kept[key] = output.clone().to(self._device)
            self.bytes += size
