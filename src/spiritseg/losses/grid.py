"""What the losses ask of the maps that they compare: types, shapes, masks."""

from __future__ import annotations

import torch
from torch import Tensor

from spiritseg.errors import ConfigError
from spiritseg.geometry import nearest, size_of

__all__ = ["at_least_float32", "check_pair", "never_negative", "valid_on"]


def at_least_float32(x: Tensor) -> Tensor:
    """Return `x` in float32 where it is in half precision; float64 stays."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


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
    return nearest(valid, size_of(like))


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
