"""Examining an experiment before it is run: what is wrong with it, and what it will cost."""

from __future__ import annotations

from spiritseg.diagnosis.examinations import doctor
from spiritseg.diagnosis.findings import Examination, Finding, Report

__all__ = ["Examination", "Finding", "Report", "doctor"]
