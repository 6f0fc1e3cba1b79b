"""Does it help? Recipes by seeds, paired statistics, figures, and one report.

`compare` (`matrix`) trains what is missing of a matrix of runs; `read_runs` (`results`) reads
what is finished; `report` (`report`) writes it up.
"""

from __future__ import annotations

from spiritseg.compare.matrix import Cell, Matrix, compare, plan, run
from spiritseg.compare.report import Report, report
from spiritseg.compare.results import Run, read_runs

__all__ = ["Cell", "Matrix", "Report", "Run", "compare", "plan", "read_runs", "report", "run"]
