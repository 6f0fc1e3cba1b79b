"""Fixtures that the tests of serve share."""

from __future__ import annotations

from tiny_student import exported, student_folder

__all__ = ["exported", "student_folder"]
