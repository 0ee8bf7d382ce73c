"""The table of ``cxlp compare`` on a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from cxlp.reports.formatting import as_cells

#: What a terminal that is too narrow for the whole table does not show, in this order, until the rest fits.
LESS = (
    "network ms", "encoding ms", "SVM ms", "peak MB", "p", "fit s", "passes", "kB", "x bare", "95% of it", "size",
    "95% interval",
)  # fmt: skip
#: Of a name, so many characters at least stand in one line.
NAME = 20


def show(heads: Sequence[str], values: Sequence[Sequence[Any]], title: str) -> None:
    """Print the table on standard output, as much of it as the terminal has room for."""
    written = as_cells(values)
    cells = {head: [head, *(record[i] for record in written)] for i, head in enumerate(heads)}
    # Names are folded, numbers are not.
    widths = {head: min(NAME, width) if head == "system" else width for head, width in _widths(cells).items()}
    console, less, shown = Console(markup=False), [head for head in LESS if head in heads], list(heads)
    while less and 1 + sum(widths[head] + 3 for head in shown) > console.width:
        shown.remove(less.pop(0))
    table = Table(title=title)
    for head in shown:
        first = head == "system"
        table.add_column(head, justify="left" if first else "right", no_wrap=not first, min_width=widths[head])
    for row in zip(*(cells[head][1:] for head in shown), strict=True):
        table.add_row(*row)
    console.print(table)
    if len(shown) < len(heads):
        console.print("(some columns; all of them are in results.md)")
    if any(head == "cv %" for head in heads):
        console.print("Choose by cv % or val %, not by the test column; notes are in results.md.", soft_wrap=True)


def _widths(cells: Mapping[str, Sequence[str]]) -> dict[str, int]:
    return {head: max(map(cell_len, column)) for head, column in cells.items()}
