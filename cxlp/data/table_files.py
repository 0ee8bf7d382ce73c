"""Rows of tables: CSV and TSV files, Parquet files, DataFrames, all as text."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cxlp.utils.errors import CxlpError

#: What a cell holds, without the blanks around it; several values where a DataFrame or a Parquet file has a list.
Cell = str | list[str]
_DELIMITERS = ",;\t|"
_PARQUET = (".parquet", ".pq")


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        where: The table and the line or row, for errors.
        cells: By column; blank: an empty text.
    """

    where: str
    cells: dict[str, Cell]


class Rows(NamedTuple):
    """A table: the names of its columns, and its rows."""

    columns: tuple[str, ...]
    rows: list[Row]


def read_rows(path: Path, encoding: str = "utf-8") -> Rows:
    """Read a table whose first row names the columns.

    Args:
        path: A Parquet file if it ends in ``.parquet`` or ``.pq``, else a text. What stands between its columns is a
            tab in ``.tsv``, and in others whichever of comma, semicolon, tab and bar is most frequent in the first
            line, if there is no line ``sep=;`` before it, which Excel writes. Byte-order marks, ends of lines, blank
            lines and quotes are as spreadsheets write them.
        encoding: Of a text; one that begins with UTF-16's byte-order mark is known by that.

    Raises:
        CxlpError: If it cannot be read; names the line.
    """
    check_table(path)
    try:
        return _read_parquet(path) if path.suffix.lower() in _PARQUET else _read_text(path, encoding)
    except OSError as error:
        raise CxlpError(f"cannot read {path}: {error.strerror or error}") from error


def check_table(path: Path) -> None:
    """Refuse what is no table by its name, or is not there.

    Raises:
        CxlpError: Says so.
    """
    if path.suffix.lower() in (".xls", ".xlsx", ".ods"):
        raise CxlpError(f"{path} is a spreadsheet: save it as CSV")
    if not path.exists():
        raise CxlpError(f"table not found: {path.absolute()}. Give yours by --data.table FILE")
    if path.is_dir():
        raise CxlpError(f"{path} is a folder, no table: of images by class, --config folder.yaml --data.root {path}")


def rows_of(frame: Any, name: str = "the DataFrame") -> Rows:  # noqa: ANN401 (pandas and polars are optional)
    """Take the rows of a pandas or polars DataFrame, counted from 1; an index that has a name is a column.

    Args:
        frame: The DataFrame.
        name: What it is called in errors.
    """
    if any(name is not None for name in getattr(getattr(frame, "index", None), "names", ())):
        frame = frame.reset_index()
    _checked(map(str, frame.columns), name)  # pandas would leave one of two columns of the same name out
    records = frame.to_dicts() if hasattr(frame, "to_dicts") else frame.to_dict("records")
    return _rows([str(column) for column in frame.columns], records, name)


def _read_parquet(path: Path) -> Rows:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise CxlpError(f"{path}: reading Parquet needs the package pyarrow: pip install pyarrow") from error
    try:
        table = parquet.read_table(path)
    except ArrowException as error:
        raise CxlpError(f"{path} is no Parquet file: {error}") from error
    return _rows(table.column_names, table.to_pylist(), str(path))


def _rows(columns: Iterable[str], records: Iterable[Mapping[Any, Any]], name: str) -> Rows:
    named = _checked(columns, name)
    rows = [
        Row(f"{name}, row {i}", dict(zip(named, map(_cell, record.values()), strict=True)))
        for i, record in enumerate(records, 1)
    ]
    return Rows(named, rows)


def _read_text(path: Path, encoding: str) -> Rows:
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    try:
        text = data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise CxlpError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not {encoding}: save it as UTF-8, or say what it "
            "is, such as data.encoding: cp1252"
        ) from error
    except LookupError as error:
        raise CxlpError(f"data.encoding is {encoding!r}: Python knows no such encoding") from error
    marked = re.match(r"sep=(.)(?=[\r\n])", text)  # how Excel says it in a line of its own
    text = text[marked.end() :] if marked else text
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = (
        marked[1] if marked else "\t" if path.suffix.lower() in (".tsv", ".tab") else max(_DELIMITERS, key=first.count)
    )
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: tuple[str, ...] = ()
    rows = []
    try:
        for record in reader:
            cells = [cell.strip() for cell in record]
            where = f"{path}, line {reader.line_num}"
            if not any(cells):
                continue
            if not columns:
                columns = _checked(cells, str(path))
                continue
            if len(cells) != len(columns):
                raise CxlpError(
                    f"{where}: {len(cells)} fields, but the first line names {len(columns)} columns: put a field that "
                    f"holds {delimiter!r} into double quotes"
                )
            rows.append(Row(where, dict(zip(columns, cells, strict=True))))
    except csv.Error as error:
        raise CxlpError(f"{path}, line {reader.line_num}: {error}: is a quote missing?") from error
    return Rows(columns, rows)


def _checked(columns: Iterable[str], name: str) -> tuple[str, ...]:
    """The names of columns; of one without a name, which pandas writes for its index, nothing is used."""
    named = tuple(column.strip() for column in columns)
    if twice := [column for column, count in Counter(map(str.lower, named)).items() if count > 1 and column]:
        raise CxlpError(f"{name}: several columns are called {twice[0]!r}")
    return named


def _cell(value: Any) -> Cell:  # noqa: ANN401 (whatever a DataFrame holds)
    if hasattr(value, "tolist"):  # of NumPy: a scalar or an array
        value = value.tolist()
    if isinstance(value, list | tuple | set):
        return [str(_cell(part)) for part in value]
    text = str(value).strip()
    if value is None or text in ("nan", "NaN", "<NA>", "NaT"):
        return ""
    # A column of whole numbers with gaps is one of floating-point numbers.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else text
