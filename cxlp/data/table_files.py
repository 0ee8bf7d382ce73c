"""Reading of tables (CSV, TSV and Parquet files, DataFrames) into rows of text."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cxlp.utils.errors import CxlpError

#: A cell's text without surrounding blanks; a list of texts if the cell of a DataFrame or Parquet file is a list.
Cell = str | list[str]
_DELIMITERS = ",;\t|"
_PARQUET = (".parquet", ".pq")


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        where: The table and the line or row, for errors.
        cells: Cells by column; an empty string if a cell is blank.
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
        path: A Parquet file with the suffix ``.parquet`` or ``.pq``, or else a text file. The delimiter of a ``.tsv``
            or ``.tab`` file is a tab; of other text files, the most frequent of comma, semicolon, tab and bar in the
            first line. A line ``sep=;`` before it, which Excel writes, overrides both. Byte-order marks, line endings,
            blank lines and quotes are accepted as spreadsheets write them.
        encoding: Encoding of a text file; one that begins with the byte-order mark of UTF-16 is read as UTF-16.

    Raises:
        CxlpError: If the table cannot be read; the error names the line.
    """
    check_table(path)
    try:
        return _read_parquet(path) if path.suffix.lower() in _PARQUET else _read_text(path, encoding)
    except OSError as error:
        raise CxlpError(f"cannot read {path}: {error.strerror or error}") from error


def check_table(path: Path) -> None:
    """Check that a file exists and is not a spreadsheet or folder.

    Raises:
        CxlpError: If it does not exist, or is one.
    """
    if path.suffix.lower() in (".xls", ".xlsx", ".ods"):
        raise CxlpError(f"{path} is a spreadsheet: save it as CSV")
    if not path.exists():
        raise CxlpError(f"table not found: {path.absolute()}. Set --data.table FILE")
    if path.is_dir():
        raise CxlpError(
            f"{path} is a folder, not a table: if it contains a folder per class, use --config folder.yaml --data.root "
            f"{path}"
        )


def rows_of(frame: Any, name: str = "the DataFrame") -> Rows:  # noqa: ANN401 (pandas and polars are optional)
    """Return the rows of a pandas or polars DataFrame, numbered from 1; a named index becomes a column.

    Args:
        frame: The DataFrame.
        name: Name of the DataFrame in errors.
    """
    if any(name is not None for name in getattr(getattr(frame, "index", None), "names", ())):
        frame = frame.reset_index()
    _checked(map(str, frame.columns), name)  # pandas would drop one of two columns of the same name
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
        raise CxlpError(f"{path} is not a Parquet file: {error}") from error
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
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not {encoding}: save the file as UTF-8, or set "
            "its encoding, such as data.encoding: cp1252"
        ) from error
    except LookupError as error:
        raise CxlpError(f"data.encoding is {encoding!r}: Python has no such encoding. Try utf-8 or cp1252") from error
    marked = re.match(r"sep=(.)(?=[\r\n])", text)  # Excel's line for the delimiter
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
                    f"{where}: {len(cells)} fields, but the first line names {len(columns)} columns: put fields that "
                    f"contain {delimiter!r} into double quotes"
                )
            rows.append(Row(where, dict(zip(columns, cells, strict=True))))
    except csv.Error as error:
        raise CxlpError(f"{path}, line {reader.line_num}: {error}: is a quote missing?") from error
    return Rows(columns, rows)


def _checked(columns: Iterable[str], name: str) -> tuple[str, ...]:
    """Check and strip the names of columns; a column without a name, such as pandas' index, stays unused."""
    named = tuple(column.strip() for column in columns)
    if twice := [column for column, count in Counter(map(str.lower, named)).items() if count > 1 and column]:
        raise CxlpError(f"{name}: several columns are called {twice[0]!r} (case ignored): rename them")
    return named


def _cell(value: Any) -> Cell:  # noqa: ANN401 (whatever a DataFrame holds)
    if hasattr(value, "tolist"):  # a scalar or an array of NumPy
        value = value.tolist()
    if isinstance(value, list | tuple | set):
        return [str(_cell(part)) for part in value]
    text = str(value).strip()
    if value is None or text in ("nan", "NaN", "<NA>", "NaT"):
        return ""
    # pandas stores integers with missing values as floating-point numbers.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else text
