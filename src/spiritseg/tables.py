"""Tables on the terminal and in Markdown."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Mapping
from html import escape
from typing import Any

__all__ = [
    "Table",
    "class_table",
    "html",
    "markdown",
    "metrics_table",
    "print_notes",
    "print_table",
    "table_text",
]

Table = list[list[str]]  # the header first


def metrics_table(metrics: Mapping[str, Mapping[str, Any]]) -> Table:
    """Tabulate the metrics of runs, by name: test accuracy, size, GFLOPs and latency."""
    head = ["network", "mIOU %", "HP-Acc %", "Var e-3", "dataset mIoU %"]
    table = [[*head, "params M", "GFLOPs", "latency ms"]]
    for name, found in metrics.items():
        test, cost = found["test"], found["cost"]
        line = [name, _percent(test["mIOU"]), _percent(test["HP-Acc"])]
        line += [f"{test['Var'] * 1000:.2f}", _percent(test["dataset mIoU"])]
        line += [f"{cost['params'] / 1e6:.3f}", f"{cost['gflops']:.2f}"]
        table.append([*line, f"{cost['latency_ms']:.1f}" if "latency_ms" in cost else "-"])
    return table


def class_table(scores: Mapping[str, Any]) -> Table:
    """Tabulate the scores of `evaluate`, with the IoU of each class."""
    table = [["measure", "value"], ["images", str(scores["images"])]]
    table += [[f"{k} %", _percent(scores[k])] for k in ("mIOU", "HP-Acc", "dataset mIoU")]
    table.append(["Var e-3", f"{scores['Var'] * 1000:.2f}"])
    return table + [[f"IoU {name} %", _percent(iou)] for name, iou in scores["IoU"].items()]


def table_text(table: Table) -> str:
    """Return a table, its header first, as `print_table` prints it."""
    from rich.console import Console
    from rich.table import Table as RichTable

    drawn = RichTable()
    for column, title in enumerate(table[0]):
        drawn.add_column(title, justify="right" if column else "left", no_wrap=column == 0)
    for row in table[1:]:
        drawn.add_row(*row)
    console = Console(file=io.StringIO(), width=shutil.get_terminal_size((100, 0)).columns)
    with console.capture() as shown:
        console.print(drawn)
    return shown.get().rstrip()


def print_table(table: Table) -> None:
    """Print a table, its header first, on the terminal."""
    print(table_text(table))


def print_notes(metrics: Mapping[str, Any]) -> None:
    """Print warnings about the labels, and which unreadable images were left out, if any."""
    for warning in metrics.get("warnings", []):
        print(f"warning: {warning}")
    if metrics.get("skipped"):
        print(f"{len(metrics['skipped'])} unreadable images were left out:")
        for path in metrics["skipped"]:
            print(f"  {path}")


def html(table: Table) -> str:
    """Return a table, its header first, as escaped HTML in a block that scrolls sideways."""
    head, *body = (
        "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row)
        for tag, row in zip(["th", *["td"] * len(table)], table, strict=False)
    )
    rows = "\n".join(f"<tr>{row}</tr>" for row in body)
    return (
        '<div class="wide" style="overflow-x: auto"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>"
    )


def markdown(table: Table) -> str:
    """Return a table, its header first, as Markdown."""
    rule = ["---", *["---:"] * (len(table[0]) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [table[0], rule, *table[1:]])


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"
