"""Outputs of frozen networks: computed once for each augmented view, kept in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from spiritseg.data.cache import Budget, Cache

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
        budget: memory for what is kept, on the CPU.
    """

    def __init__(self, compute: Callable[[Tensor], Named], budget: Budget) -> None:
        self._compute = compute
        self._cache: Cache[Named] = Cache(budget, _on_cpu)
        self.computed = 0

    @property
    def bytes(self) -> int:
        """Bytes of the kept outputs."""
        return self._cache.nbytes

    def __call__(self, images: Tensor, keys: Sequence[Key]) -> Named:
        """Return the outputs of a batch of augmented images.

        Args:
            images: (B, 3, H, W).
            keys: what each image is a function of, B of them.

        Returns:
            (B, ...) float32 by name, on the images' device.
        """
        kept = [self._cache.get(key) for key in keys]
        fresh = self._fresh(images, [row for row, outputs in enumerate(kept) if outputs is None])
        rows = [outputs if outputs is not None else next(fresh) for outputs in kept]
        for key, outputs in zip(keys, rows, strict=True):
            self._cache.keep(key, outputs)
        return {
            name: torch.stack([row[name].to(images.device) for row in rows]).float()
            for name in rows[0]
        }

    @torch.no_grad()
    def _fresh(self, images: Tensor, rows: list[int]) -> Iterator[Named]:
        self.computed += len(rows)
        found: list[Named] = []
        size = 1 if images.device.type == "cpu" else max(1, len(rows))
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            outputs = {name: _half(x) for name, x in self._compute(images[some]).items()}
            found += [{name: x[i] for name, x in outputs.items()} for i in range(len(some))]
        return iter(found)


def _on_cpu(outputs: Named) -> Named:
    # Clones: a view would hold the whole batch's memory.
    return {name: x.clone().cpu() for name, x in outputs.items()}


def _half(values: Tensor) -> Tensor:
    return values.clamp(-_HALF_MAX, _HALF_MAX).half()
