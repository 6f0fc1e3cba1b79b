"""What an examination found: findings in sections, and how they are shown."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from typing import Literal

from spiritseg.tables import Table

__all__ = ["Finding", "Report", "Section"]

Level = Literal["ok", "warning", "problem"]

_WIDTH = 96


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        level: ok; warning: it runs, but look at it; problem: it does not run, or is pointless.
        what: what was found.
        do: what to do about it.
    """

    level: Level
    what: str
    do: str = ""


@dataclass
class Section:
    """Findings on one subject.

    Args:
        title: the subject.
        findings: what was found.
        tables: figures by their titles.
    """

    title: str
    findings: list[Finding] = field(default_factory=list)
    tables: dict[str, Table] = field(default_factory=dict)

    def ok(self, what: str) -> None:
        """Note something that is as it should be."""
        self.findings.append(Finding("ok", what))

    def warn(self, what: str, do: str = "") -> None:
        """Note something that runs but should be looked at."""
        self.findings.append(Finding("warning", what, do))

    def problem(self, what: str, do: str = "") -> None:
        """Note something that must be mended."""
        self.findings.append(Finding("problem", what, do))

    def __str__(self) -> str:
        lines = [self.title]
        for finding in self.findings:
            mark = f"  {finding.level:8} "
            lines += _wrapped(finding.what, mark)
            lines += _wrapped(f"-> {finding.do}", " " * len(mark)) if finding.do else []
        return "\n".join(lines)


@dataclass(frozen=True)
class Report:
    """What an examination found.

    Args:
        sections: in the order in which they were looked at.
    """

    sections: list[Section]

    @property
    def findings(self) -> list[Finding]:
        """All findings, in order."""
        return [finding for section in self.sections for finding in section.findings]

    @property
    def problems(self) -> list[Finding]:
        """The findings that must be mended before a run."""
        return [finding for finding in self.findings if finding.level == "problem"]

    @property
    def warnings(self) -> list[Finding]:
        """The findings that should be looked at."""
        return [finding for finding in self.findings if finding.level == "warning"]


def _wrapped(text: str, mark: str) -> list[str]:
    """Wrap the lines of a text; the first stands behind the mark."""
    blank = " " * len(mark)
    lines: list[str] = []
    for line in text.splitlines() or [""]:
        inner = blank + " " * (len(line) - len(line.lstrip()))
        lines += textwrap.wrap(
            line.strip(),
            _WIDTH,
            initial_indent=inner,
            subsequent_indent=inner,
            break_long_words=False,
            break_on_hyphens=False,
        ) or [blank]
    lines[0] = mark + lines[0][len(mark) :]
    return lines
