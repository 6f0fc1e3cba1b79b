"""Findings by examination, how they are printed, and what the examinations share."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from torch import Tensor

from spiritseg.config import Experiment
from spiritseg.data.domains import Domains
from spiritseg.models import Segmenter
from spiritseg.tables import Table, table_text

__all__ = ["Examination", "Finding", "Known", "Report", "reason"]

T = TypeVar("T")

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
        where: Field, network, stage or split that it is about.
        what: What was found.
        do: What to do about it, if anything.
    """

    level: Level
    where: str
    what: str
    do: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f"\n-> {self.do}" if self.do else "")


@dataclass(repr=False)
class Examination:
    """The findings on one subject, and tables by their titles."""

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
    """What the doctor found in an experiment; it prints as text."""

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


@dataclass
class Known:
    """An experiment, its images and its networks as far as they could be opened.

    Args:
        experiment: The experiment.
        num_classes: K, the background included; 2 while unknown.
        classes: Names of the classes; empty while unknown.
        samples: Prepared training images (1, 3, h, w) in [0, 1]; empty where none is readable.
        size: (H, W) of a test image as a network sees it.
        domains: The opened images; None where something is wrong with them.
        nbytes: Bytes of all images, decoded.
        read_s: Seconds to decode, or to render, once each image that is then kept in memory.
        networks: The networks that could be built, by name.
    """

    experiment: Experiment
    num_classes: int = 2
    classes: tuple[str, ...] = ()
    samples: list[Tensor] = field(default_factory=list)
    size: tuple[int, int] = (128, 128)
    domains: Domains | None = None
    nbytes: int = 0
    read_s: float = 0.0
    networks: dict[str, Segmenter] = field(default_factory=dict)

    @property
    def dry(self) -> Experiment:
        """The experiment in this process alone: one device, uncompiled, without progress bars."""
        trainer = replace(
            self.experiment.trainer,
            devices=1,
            num_nodes=1,
            strategy="auto",
            sync_batchnorm=False,
            compile=False,
            progress=False,
            workers=0,
        )
        return replace(self.experiment, trainer=trainer)

    @property
    def images_fit(self) -> bool:
        """Whether all decoded images fit input.cache_mib."""
        return self.nbytes <= self.experiment.input.cache_mib * 2**20

    def tracked(self, items: Iterable[T], title: str, count: int) -> Iterable[T]:
        """Yield items under a progress bar on stderr; only on a terminal or in a notebook."""
        from rich.console import Console
        from rich.progress import track

        console = Console(stderr=True)
        seen = console.is_terminal or console.is_jupyter
        hidden = not (seen and self.experiment.trainer.progress)
        return track(items, title, count, console=console, transient=True, disable=hidden)
