"""Pieces of the page: tables, tiles, pictures. Whatever they are given is escaped."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

#: Most rows of a table, and most bytes of a picture that is put into the page itself.
ROWS, PICTURE = 1000, 1_000_000


def section(title: str, *content: str) -> str:
    """A card with a heading; empty where there is no content."""
    inner = "".join(content)
    return f"<section><h2>{escape(title)}</h2>{inner}</section>" if inner else ""


def tiles(values: Mapping[str, str]) -> str:
    """Headline figures."""
    return "".join(f"<div><b>{escape(v)}</b><span>{escape(k)}</span></div>" for k, v in values.items())


def facts(values: Mapping[str, str]) -> str:
    """A list of names and values."""
    return f"<dl>{''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>' for k, v in values.items())}</dl>"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], bar: str | None = None) -> str:
    """A table that is sorted by a click on a heading.

    Args:
        columns: Headings.
        rows: Cells; a column whose cells are all numbers (or empty) is set flush right.
        bar: A column of parts in [0, 1] that are drawn as bars, too.
    """
    numeric = [all(_is_number(row[i]) for row in rows) for i in range(len(columns))]
    kinds = [' class="number"' if is_number else "" for is_number in numeric]
    head = "".join(
        f'<th scope="col"{kind}><button type="button">{escape(c)}</button></th>'
        for c, kind in zip(columns, kinds, strict=True)
    )
    body = []
    for row in rows[:ROWS]:
        cells = []
        for column, cell, kind in zip(columns, row, kinds, strict=True):
            if column == bar and cell:
                kind = f' class="number bar" style="--part: {100 * min(1.0, max(0.0, float(cell))):.1f}%"'
            cells.append(f"<td{kind}>{escape(cell)}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    more = f'<p class="soft">and {len(rows) - ROWS} more</p>' if len(rows) > ROWS else ""
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>{more}"
    )


def picture(path: Path, description: str, kind: str = "") -> str:
    """A picture inside of the page; a note where the file is too large for that, nothing where there is none."""
    if not path.is_file():
        return ""
    data = path.read_bytes()
    if len(data) > PICTURE:
        return f"<p>{escape(description)}: {escape(path.name)}</p>"
    media = "image/png" if path.suffix == ".png" else "image/jpeg"
    source = f"data:{media};base64,{base64.b64encode(data).decode()}"
    style = f' class="{kind}"' if kind else ""
    return f'<img{style} src="{source}" alt="{escape(description)}">'


def folded(title: str, text: str) -> str:
    """A text that is shown by a click."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def _is_number(cell: str) -> bool:
    try:
        float(cell or 0)
    except ValueError:
        return False
    return True
