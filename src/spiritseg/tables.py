"""Tables on the terminal and in Markdown."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table as RichTable

__all__ = [
    "Table",
    "class_iou_table",
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
    """Tabulate runs: accuracy on the test images, size, work and latency.

    Args:
        metrics: of `Result`, by the name of the row.

    Returns:
        mIOU, HP-Acc and dataset mIoU in percent, Var in thousandths, parameters in millions.
    """
    head = ["network", "mIOU %", "HP-Acc %", "Var e-3", "dataset mIoU %"]
    table = [[*head, "params M", "GFLOPs", "latency ms"]]
    for name, found in metrics.items():
        test, cost = found["test"], found["cost"]
        table.append(
            [
                name,
                _percent(test["mIOU"]),
                _percent(test["HP-Acc"]),
                f"{test['Var'] * 1000:.2f}",
                _percent(test["dataset mIoU"]),
                f"{cost['params'] / 1e6:.3f}",
                f"{cost['gflops']:.2f}",
                f"{cost['latency_ms']:.1f}" if "latency_ms" in cost else "-",
            ]
        )
    return table


def class_table(scores: Mapping[str, Any]) -> Table:
    """Tabulate one network's scores, with the IoU of each class.

    Args:
        scores: as `evaluate` returns them.
    """
    table = [["measure", "value"], ["images", str(scores["images"])]]
    table += [[f"{k} %", _percent(scores[k])] for k in ("mIOU", "HP-Acc", "dataset mIoU")]
    table.append(["Var e-3", f"{scores['Var'] * 1000:.2f}"])
    return table + [[f"IoU {name} %", _percent(iou)] for name, iou in scores["IoU"].items()]


def class_iou_table(metrics: Mapping[str, Mapping[str, Any]], split: str = "test") -> Table:
    """Tabulate the IoU of each class over a split's pixels, a column a network.

    Args:
        metrics: of `Result`, by the name of the column.
        split: test or val.

    Returns:
        IoU in percent, a row a class; "-" for a class that is in none of the labels and
        predictions, or that a network does not know.
    """
    found = {name: of[split]["IoU"] for name, of in metrics.items()}
    classes = dict.fromkeys(label for iou in found.values() for label in iou)
    rows = [[label, *(_percent(iou.get(label)) for iou in found.values())] for label in classes]
    return [["IoU %", *found], *rows]


def _rich_table(table: Table) -> RichTable:
    """Return a table as one of rich's.

    Args:
        table: rows of words, the header first.
    """
    from rich.table import Table as RichTable

    drawn = RichTable()
    for column, title in enumerate(table[0]):
        drawn.add_column(title, justify="right" if column else "left", no_wrap=column == 0)
    for row in table[1:]:
        drawn.add_row(*row)
    return drawn


def table_text(table: Table) -> str:
    """Return a table as `print_table` prints it.

    Args:
        table: rows of words, the header first.
    """
    from rich.console import Console

    width = shutil.get_terminal_size((100, 0)).columns
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as shown:
        console.print(_rich_table(table))
    return shown.get().rstrip()


def print_table(table: Table) -> None:
    """Print a table on the terminal.

    Args:
        table: rows of words, the header first.
    """
    from rich.console import Console

    Console().print(_rich_table(table))


def print_notes(metrics: Mapping[str, Any]) -> None:
    """Print what is odd about the labels, and which unreadable images were left out, if any.

    Args:
        metrics: of `Result`, or as `evaluate` returns them.
    """
    for warning in metrics.get("warnings", []):
        print(f"warning: {warning}")
    if metrics.get("skipped"):
        print(f"{len(metrics['skipped'])} unreadable images were left out:")
        for path in metrics["skipped"]:
            print(f"  {path}")


def html(table: Table) -> str:
    """Return a table as HTML, escaped, in a block that scrolls sideways.

    Args:
        table: Rows of words, the header first.
    """
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
    """Return a table as Markdown.

    Args:
        table: Rows of words, the header first.
    """
    rule = ["---", *["---:"] * (len(table[0]) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [table[0], rule, *table[1:]])


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"
