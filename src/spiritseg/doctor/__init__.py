"""Examining an experiment before it is run: what is wrong with it, and what it will cost."""

from __future__ import annotations

from spiritseg.doctor.examinations import doctor
from spiritseg.doctor.findings import Examination, Finding, Report

__all__ = ["Examination", "Finding", "Report", "doctor"]
