"""The table of ``cxlp compare`` on a terminal."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

#: What a terminal that is too narrow for the whole table does not show, in this order, until the rest fits.
LESS = (
    "network ms", "encoding ms", "SVM ms", "peak MB", "p", "fit s", "passes", "kB", "x bare", "95% of it", "size",
    "95% interval",
)  # fmt: skip


def show(heads: Sequence[str], values: Sequence[Sequence[Any]], title: str) -> None:
    """Print the table on standard output, as much of it as the terminal has room for."""
    console, less, shown = Console(), [head for head in LESS if head in heads], list(heads)
    while (table := _table(shown, heads, values, title)) and less and console.measure(table).minimum > console.width:
        shown.remove(less.pop(0))
    console.print(table)
    if len(shown) < len(heads):
        console.print("(some columns; all of them are in results.md)")
    if any(head == "cv %" for head in heads):
        console.print(
            "Choose by cv % or val %, not by the test column. The notes below results.md say what columns mean."
        )


def _table(shown: Sequence[str], heads: Sequence[str], values: Sequence[Sequence[Any]], title: str) -> Table:
    table = Table(title=title)
    for head in shown:
        # Names are folded, numbers are not.
        first = head == "system"
        table.add_column(head, justify="left" if first else "right", no_wrap=not first, min_width=20 if first else None)
    for record in values:
        table.add_row(*(str(record[heads.index(head)]) for head in shown))
    return table
