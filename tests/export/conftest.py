"""Fixtures that the tests of exports share."""

from __future__ import annotations

from tiny_student import exported, fixed, pictures, scenes, student_folder, traced

__all__ = ["exported", "fixed", "pictures", "scenes", "student_folder", "traced"]
