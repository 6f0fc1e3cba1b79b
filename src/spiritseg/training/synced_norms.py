"""Batch norms that take their statistics over the images of all processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed
from torch.overrides import TorchFunctionMode

__all__ = ["SyncedNorms", "synced_batch_norm"]


class SyncedNorms(TorchFunctionMode):
    """Within this context every batch norm in train mode is `synced_batch_norm`.

    `torch.nn.SyncBatchNorm` replaces modules, which drops the activation of those that fuse one
    (timm's ``BatchNormAct2d``), and runs on GPUs only. This intercepts the function that all
    of them call, so that the network stays as it is, on any device.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.batch_norm:
            given = dict(zip(_NAMES, args, strict=False)) | dict(kwargs or {})
            if given.get("training"):
                return synced_batch_norm(**given)
        return func(*args, **(kwargs or {}))


_NAMES = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")


def synced_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise by mean and variance per channel over the batches of all processes.

    The gradients, averaged over processes as DDP does, are those of one process with the
    whole batch, where each process has as many images.

    Args:
        input: (B, C, ...), computed in float32 at least.
        running_mean: (C,), updated in place; None to keep none.
        running_var: (C,), updated in place by the unbiased variance; None to keep none.
        weight: (C,) factors, or None.
        bias: (C,) offsets, or None.
        training: Always true; named so that the signature is that of ``F.batch_norm``.
        momentum: Share of the new statistics in the running ones.
        eps: Added to the variance.

    Returns:
        (B, C, ...), of the input's type.
    """
    x = input if input.dtype == torch.float64 else input.float()
    axes = [axis for axis in range(x.ndim) if axis != 1]
    shape = [1, -1] + [1] * (x.ndim - 2)
    here = x.new_tensor([x.numel() / x.shape[1]])
    sums = _Summed.apply(torch.cat([x.sum(axes), here]))
    count = sums[-1].detach()
    mean = sums[:-1] / count
    centred = x - mean.view(shape)
    variance = _Summed.apply(centred.square().sum(axes)) / count
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean), momentum)
            unbiased = variance * (count / (count - 1).clamp(min=1))
            running_var.lerp_(unbiased.to(running_var), momentum)
    found = centred * (variance + eps).rsqrt().view(shape)
    if weight is not None:
        found = found * weight.view(shape)
    if bias is not None:
        found = found + bias.view(shape)
    normalised: Tensor = found.to(input.dtype)
    return normalised


class _Summed(torch.autograd.Function):
    """Sum over the processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        distributed.all_reduce(total)
        return total
