"""The tiny student of the tests of deploy."""

from deploy.conftest import exported, student_folder

__all__ = ["exported", "student_folder"]
