"""Looking at an experiment before it is run: what fits, what does not, what it will cost."""

from __future__ import annotations

from spiritseg.diagnosis.doctor import doctor, examine
from spiritseg.diagnosis.findings import Finding, Report, Section

__all__ = ["Finding", "Report", "Section", "doctor", "examine"]
