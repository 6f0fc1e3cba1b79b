"""What the doctor found: findings by examination, and how they are printed."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, field
from typing import Literal

from spiritseg.tables import Table, table_text

__all__ = ["Examination", "Finding", "Report", "reason"]

Level = Literal["ok", "warning", "problem"]

_WRAPPER = textwrap.TextWrapper(
    100, subsequent_indent=" " * 11, break_long_words=False, break_on_hyphens=False
)
_FIELD = re.compile(r"([a-z_]+(?:\.[\w-]+)*): (.+)", re.DOTALL)  # a message that names its field


@dataclass(frozen=True)
class Finding:
    """One result of an examination.

    Args:
        level: ok; warning: the run works, but look at it; problem: the run fails or is pointless.
        where: the field, network, stage or split that it is about.
        what: what was found.
        do: what to do about it; empty where there is nothing to do.
    """

    level: Level
    where: str
    what: str
    do: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f"\n-> {self.do}" if self.do else "")


@dataclass(repr=False)
class Examination:
    """The findings on one subject.

    Args:
        title: the subject.
        findings: in the order in which they were made.
        tables: tables by their titles.
    """

    title: str
    findings: list[Finding] = field(default_factory=list)
    tables: dict[str, Table] = field(default_factory=dict)

    def ok(self, where: str, what: str) -> None:
        """Add something that is as it should be."""
        self.findings.append(Finding("ok", where, what))

    def warn(self, where: str, what: str, do: str = "") -> None:
        """Add something that works but should be looked at."""
        self.findings.append(Finding("warning", where, what, do))

    def problem(self, where: str, what: str, do: str = "") -> None:
        """Add something that must be mended before the run."""
        self.findings.append(Finding("problem", where, what, do))

    def refused(self, where: str, message: str) -> None:
        """Add an error message as a problem; the field it begins with is where."""
        named = _FIELD.fullmatch(message)
        self.problem(*(named.groups() if named else (where, message)))

    def __str__(self) -> str:
        lines = [self.title]
        for finding in self.findings:
            for number, line in enumerate(str(finding).splitlines()):
                mark = f"  {'' if number else finding.level:8} "
                lines.append(_WRAPPER.fill(mark + line))
        tables = [f"\n{title}\n{table_text(rows)}" for title, rows in self.tables.items()]
        return "\n".join([*lines, *tables])

    __repr__ = __str__


def reason(error: Exception) -> str:
    """Return the first line of an exception's message, or its name."""
    return (str(error) or repr(error)).splitlines()[0]


@dataclass(repr=False)
class Report:
    """What the doctor found in an experiment.

    Args:
        examinations: in the order in which they were made.
    """

    examinations: list[Examination] = field(default_factory=list)

    @property
    def findings(self) -> list[Finding]:
        """All findings, in order."""
        return [finding for one in self.examinations for finding in one.findings]

    @property
    def problems(self) -> list[Finding]:
        """The findings that must be mended before a run."""
        return [finding for finding in self.findings if finding.level == "problem"]

    @property
    def warnings(self) -> list[Finding]:
        """The findings that should be looked at."""
        return [finding for finding in self.findings if finding.level == "warning"]

    @property
    def summary(self) -> str:
        """The numbers of problems and warnings."""
        counts = (len(self.problems), "problem"), (len(self.warnings), "warning")
        return ", ".join(f"{count} {name}{'s' * (count != 1)}" for count, name in counts)

    def __str__(self) -> str:
        return "\n\n".join([*map(str, self.examinations), self.summary])

    __repr__ = __str__
