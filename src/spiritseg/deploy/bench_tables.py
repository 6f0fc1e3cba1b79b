"""What `bench` measured: one wide table, its Markdown, or text for a narrow terminal."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

from spiritseg.deploy.bench import BenchRow
from spiritseg.tables import Table

__all__ = ["aligned_markdown", "bench_table", "drawn_width", "narrow_text"]

_HEAD = (
    *("student", "runtime", "precision", "H x W", "params M", "GFLOPs", "file MB", "memory MiB"),
    *("network ms", "p95", "frames/s", "image to mask ms", "p95", "frames/s", "of peak %"),
)
_NARROW = (  # titles of two lines, and in which order columns go where there is no room
    ("runtime\nprecision", 0),
    ("file\nMB", 4),
    ("memory\nMiB", 3),
    ("network\nms", 0),
    ("network\np95", 6),
    ("network\nframes/s", 7),
    ("to mask\nms", 0),
    ("to mask\np95", 5),
    ("to mask\nframes/s", 1),
    ("of\npeak %", 2),
)
_GAP = 2  # between columns


def bench_table(rows: Sequence[BenchRow]) -> Table:
    """Tabulate all that was measured; about 180 characters wide.

    Args:
        rows: from `bench`.

    Returns:
        A row of words for each, the header first: times are medians and 95th percentiles in
        ms, "of peak" is `BenchRow.share` in percent; "-" for what was not measured.
    """
    return [list(_HEAD)] + [
        [
            row.student,
            row.runtime,
            row.precision,
            f"{row.size[0]} x {row.size[1]}",
            f"{row.params / 1e6:.3f}",
            f"{row.gflops:.2f}",
            *_figures(row),
        ]
        for row in rows
    ]


def drawn_width(table: Table) -> int:
    """Say how wide a table is that is drawn in a frame (`spiritseg.tables.print_table`).

    Args:
        table: rows of words, the header first.

    Returns:
        Characters of a line, where no cell is folded.
    """
    return sum(width + 3 for width in _widths(table)) + 1


def aligned_markdown(table: Table) -> str:
    """Write a table as Markdown whose columns are aligned as it stands.

    Args:
        table: rows of words, the header first.

    Returns:
        A line for each row, and the rule below the header.
    """
    widths = _widths(table)
    rule = ["-" * widths[0], *(f"{'-' * (width - 1)}:" for width in widths[1:])]
    head, *body = (_padded(row, widths) for row in table)
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *body])


def narrow_text(rows: Sequence[BenchRow], width: int) -> str:
    """Write what was measured for a narrow terminal, a table for each student and size.

    Args:
        rows: from `bench`.
        width: of the terminal in characters. The columns that matter least are left out until
            the rest fits; the three that matter most stay.

    Returns:
        Lines; each table below its student, size and costs.
    """
    parts: dict[str, Table] = {}
    for row in rows:
        title = (
            f"{row.student} at {row.size[0]} x {row.size[1]}: {row.params / 1e6:.3f} M "
            f"parameters, {row.gflops:.2f} GFLOPs"
        )
        engine = f"{row.runtime} {row.precision}"
        parts.setdefault(title, []).append([engine, *_figures(row)])
    titles = [[title.split("\n")[line] for title, _ in _NARROW] for line in (0, 1)]
    lines = [*titles, *(line for table in parts.values() for line in table)]
    widths = _widths(lines)
    kept = _that_fit(widths, width)
    return "\n\n".join(
        "\n".join([title, *(_plain(line, widths, kept) for line in [*titles, *table])])
        for title, table in parts.items()
    )


def _that_fit(widths: Sequence[int], width: int) -> list[int]:
    """Choose columns: those that may go are dropped, the least important first."""
    kept = list(range(len(widths)))
    for column in sorted(kept, key=lambda column: -_NARROW[column][1]):
        if sum(widths[k] + _GAP for k in kept) - _GAP <= width or _NARROW[column][1] == 0:
            break
        kept.remove(column)
    return kept


def _plain(row: Sequence[str], widths: Sequence[int], kept: Sequence[int]) -> str:
    padded = _padded(row, widths)
    return (" " * _GAP).join(padded[column] for column in kept).rstrip()


def _padded(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Align the first cell left, figures right."""
    first, *others = zip(row, widths, strict=True)
    return [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]


def _widths(table: Table) -> list[int]:
    return [max(map(len, column)) for column in zip(*table, strict=True)]


def _figures(row: BenchRow) -> list[str]:
    return [
        f"{row.bytes / 1e6:.2f}",
        "-" if row.memory_mib is None else f"{row.memory_mib:.0f}",
        *_of_times(row.network_ms),
        *_of_times(row.whole_ms),
        f"{100 * row.share:.0f}",
    ]


def _of_times(times: Sequence[float]) -> list[str]:
    if not times:
        return ["-", "-", "-"]
    median, p95 = statistics.median(times), float(np.percentile(times, 95))
    return [f"{median:.1f}", f"{p95:.1f}", f"{1e3 / median:.1f}"]
