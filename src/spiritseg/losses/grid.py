"""Bringing feature maps, logits, labels and masks to one grid.

Half-pixel centres throughout: position i of n lies at (i + 1/2) / n of the image, for
bilinear and for nearest neighbour, so that resized maps and labels stay aligned.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spiritseg.errors import ConfigError

__all__ = ["at_least_float32", "bilinear", "check_pair", "nearest", "never_negative", "valid_on"]


def at_least_float32(x: Tensor) -> Tensor:
    """Return `x` in float32 where it is in half precision; float64 stays."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps (B, C, h, w) bilinearly to `size` (H, W); no copy where they have it."""
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def nearest(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize labels or masks (B, H, W) to `size` (h, w) by nearest neighbour, in integers."""
    for axis, (old, new) in enumerate(zip(x.shape[-2:], size, strict=True), start=x.ndim - 2):
        if old != new:  # floor((i + 1/2) * old / new), exactly
            source = (2 * torch.arange(new, device=x.device) + 1) * old // (2 * new)
            x = x.index_select(axis, source)
    return x


def valid_on(valid: Tensor | None, like: Tensor, loss: str) -> Tensor | None:
    """Bring the mask of a loss to the grid of `like`.

    Args:
        valid: (B, H, W) bool, False on padding; None where everything is valid.
        like: (B, C, h, w), whose grid is wanted.
        loss: name of the loss, for the error.

    Returns:
        (B, h, w) bool, or None.

    Raises:
        ConfigError: `valid` is no boolean mask of as many images.
    """
    if valid is None:
        return None
    if valid.dtype != torch.bool or valid.ndim != 3 or len(valid) != len(like):
        raise ConfigError(
            f"{loss}: expected valid as a bool mask (B, H, W) of {len(like)} images, got "
            f"{valid.dtype} {tuple(valid.shape)}. Give labels != 255 only where 255 is padding."
        )
    return nearest(valid, (like.shape[-2], like.shape[-1]))


def check_pair(student: Tensor, teacher: Tensor, loss: str, *, channels: bool) -> None:
    """Check that a student's and a teacher's maps can be compared.

    Args:
        student: (B, C, h, w).
        teacher: (B, C', h', w').
        loss: name of the loss, for the error.
        channels: whether C and C' must agree.

    Raises:
        ConfigError: other than four axes, or images (or channels) that differ in number.
    """
    shapes = f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}"
    if student.ndim != 4 or teacher.ndim != 4:
        raise ConfigError(f"{loss}: expected maps of shape (B, C, h, w), got {shapes}.")
    if student.shape[0] != teacher.shape[0]:
        raise ConfigError(
            f"{loss}: student and teacher saw different numbers of images, got {shapes}. "
            "Give both the same batch."
        )
    if channels and student.shape[1] != teacher.shape[1]:
        raise ConfigError(
            f"{loss}: student and teacher differ in channels, got {shapes}. "
            "End the student in a 1x1 convolution to the teacher's channels."
        )


def never_negative(x: Tensor) -> Tensor:
    """Lift rounding errors below zero to zero, and leave the gradient as it is.

    A plain clamp would also cut the gradient, just where student and teacher are close.
    """
    return x - x.detach().clamp(max=0)
