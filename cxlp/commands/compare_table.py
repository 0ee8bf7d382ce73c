"""The table that ``cxlp compare`` prints on a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from cxlp.reports.formatting import as_cells

#: Columns that are dropped, in this order, until the table fits the terminal.
DROPPABLE = (
    "network ms", "encoding ms", "SVM ms", "peak MB", "p", "fit s", "passes", "kB", "x bare", "95% of it", "size",
    "95% interval",
)  # fmt: skip
#: Minimum width of the column of names, characters; longer names are wrapped.
NAME_WIDTH = 20


def show(heads: Sequence[str], values: Sequence[Sequence[Any]], title: str) -> None:
    """Print the table on standard output, with as many columns as the terminal has room for."""
    written = as_cells(values)
    cells = {head: [head, *(record[i] for record in written)] for i, head in enumerate(heads)}
    # Names are wrapped, numbers are not.
    widths = {head: min(NAME_WIDTH, width) if head == "system" else width for head, width in _widths(cells).items()}
    console, droppable, shown = Console(markup=False), [head for head in DROPPABLE if head in heads], list(heads)
    while droppable and 1 + sum(widths[head] + 3 for head in shown) > console.width:
        shown.remove(droppable.pop(0))
    table = Table(title=title)
    for head in shown:
        first = head == "system"
        table.add_column(head, justify="left" if first else "right", no_wrap=not first, min_width=widths[head])
    for row in zip(*(cells[head][1:] for head in shown), strict=True):
        table.add_row(*row)
    console.print(table)
    if len(shown) < len(heads):
        console.print("(columns are left out; results.md has the whole table)")
    if any(head == "cv %" for head in heads):
        console.print("Choose by cv % or val %, not by the test column; see the notes in results.md.", soft_wrap=True)


def _widths(cells: Mapping[str, Sequence[str]]) -> dict[str, int]:
    return {head: max(map(cell_len, column)) for head, column in cells.items()}
