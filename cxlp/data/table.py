"""Your own images: a table with a row per image."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cxlp.data.datamodule import ImageDataModule
from cxlp.data.dataset import Content, Sample, Split, is_there
from cxlp.data.decode import Box
from cxlp.data.lists import as_box
from cxlp.data.names import notes_on_similar
from cxlp.data.split_folders import split_of
from cxlp.data.splitting import check_fraction, split_off
from cxlp.data.table_files import Cell, Row, Rows, read_rows, rows_of
from cxlp.utils.errors import CxlpError, did_you_mean

#: Recognised names of columns, if the options do not name them.
PATH = (
    *("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "image_file"),
    *("image_name", "img", "img_path"),
)
LABEL = ("label", "class", "category", "target", "species", "class_name", "label_name")
LABELS = ("labels", "tags", "classes", "categories")
SPLIT = ("split", "set", "subset", "partition")
BOX = ("x", "y", "w", "h")
_VALUES = {
    **dict.fromkeys(("1", "1.0", "true", "yes"), 1),
    **dict.fromkeys(("0", "0.0", "false", "no"), -1),
    **dict.fromkeys(("", "-1", "-1.0", "na", "nan", "null"), 0),
}
#: Values in the cells of a missing box.
_NO_BOX = ("", "na", "nan", "<na>", "null", "none")


class Table(ImageDataModule):
    """Images listed in a CSV, TSV or Parquet file, or in a pandas DataFrame.

    The table has a column ``path``, and either ``label`` for one label per image, or ``labels`` for several labels in
    one cell, or a column for each class with 1 (present), 0 (absent), blank or -1 (unspecified). Optional columns are
    ``split`` (train, val, test, or other usual names), without which a test set is drawn, and ``x``, ``y``, ``w``,
    ``h``, a box in pixels. Other usual names are recognised, too, in upper or lower case. Rows that repeat an earlier
    row are left out and counted.

    Args:
        table: Path of the file; in Python also a DataFrame.
        root: Folder to which paths are relative. Null: the folder of the file, or the working directory for a
            DataFrame.
        path_column: Column of the paths. Null: ``path``, ``file``, ``filename``, ``image`` or similar.
        label_column: Column of the label, if each image has one. Null: ``label``, ``class``, ``category`` or similar.
        labels_column: Column of the labels, if an image may have several. Null: ``labels``, ``tags`` or similar.
        separator: Separator of several labels in a cell. Null: the first of semicolon, bar and comma that occurs in
            some cell; if none occurs, a blank, if splitting at blanks yields fewer classes than there are cells.
        class_columns: Columns of the classes, if each class has one. Null: if there is neither a column of a label nor
            of labels, all other columns of 0, 1, -1 and blanks.
        split_column: Column of the splits. Null: ``split``, ``set``, ``subset`` or ``partition``.
        bbox: Crop each image to its box, if it has one.
        encoding: Encoding of a text file.
        test_fraction: Fraction of each class for the test set if there are no splits. The same images are drawn in
            every run.
        **common: See :class:`~cxlp.data.datamodule.ImageDataModule`.
    """

    name = "table"
    holds_out_own = True

    def __init__(
        self,
        table: Any = "data/table.csv",  # noqa: ANN401 (a path or a DataFrame)
        root: str | Path | None = None,
        path_column: str | None = None,
        label_column: str | None = None,
        labels_column: str | None = None,
        separator: str | None = None,
        class_columns: list[str] | None = None,
        split_column: str | None = None,
        bbox: bool = True,
        encoding: str = "utf-8",
        test_fraction: float = 0.2,
        **common: Any,
    ) -> None:
        is_frame = hasattr(table, "columns")
        path = Path("." if is_frame else str(table))
        super().__init__(root or (path if is_frame else path.parent), **common)
        check_fraction(test_fraction)
        if sum(map(bool, (label_column, labels_column, class_columns))) > 1:
            raise CxlpError("data.label_column, data.labels_column and data.class_columns exclude each other: set one")
        self.bbox, self.test_fraction, self.separator = bbox, test_fraction, separator
        self.table = "the DataFrame" if is_frame else str(path)
        self.name = self.name if is_frame else path.stem
        self._rows: Rows = rows_of(table) if is_frame else read_rows(path, encoding)
        if not self._rows.rows:
            raise CxlpError(f"{self.table} has no rows")
        found = self._column("path_column", path_column, PATH)
        if found is None:
            raise CxlpError(
                f"{self.table} has no column of paths: set data.path_column. Its columns are {self._named()}"
            )
        self._path, self._split = found, self._column("split_column", split_column, SPLIT)
        self._label = None if labels_column or class_columns else self._column("label_column", label_column, LABEL)
        several = not (self._label or class_columns)
        self._labels = self._column("labels_column", labels_column, LABELS) if several else None
        self._classes = [str(self._column("class_columns", c, ())) for c in class_columns or ()]
        box = [column for name in BOX if (column := self._match(name))]
        self._box = [] if len(box) < len(BOX) or set(box) & {*self._classes} else box
        if not (self._label or self._labels or self._classes):
            if all(self._is_mark(row.cells[column]) for row in self._rows.rows for column in self._box):
                self._box = []  # all values are 0 or 1, so the columns are classes: a box has a positive width
            self._classes = self._class_columns()
        self.multi_label = self._label is None

    def read(self) -> Content:
        """Read the rows; the classes are the sorted labels, or the class columns in their order."""
        self.left_out.clear()
        self.notes.clear()
        classes, labels = self._read_labels()
        splits: dict[str, list[Sample]] = {}
        known: dict[tuple[Path, Box | None], tuple[Sample, str, Row]] = {}
        for row, label in zip(self._rows.rows, labels, strict=True):
            if not (file := row.cells[self._path]):
                raise CxlpError(f"{row.where}: {self._path} is blank")
            sample = Sample(self._file(str(file)), label, self._read_box(row))
            split = self._read_split(row)
            earlier, its_split, first = known.setdefault((sample.path, sample.box), (sample, split, row))
            if first is row:
                splits.setdefault(split, []).append(sample)
            elif earlier.label != label:
                raise CxlpError(
                    f"{row.where}: {file} has other labels than in {first.where}: keep one row; for several labels of "
                    "an image, see data.labels_column"
                )
            elif its_split != split:
                raise CxlpError(f"{row.where}: {file} is in {split}, but in {its_split} in {first.where}: keep one row")
            else:
                self.left_out["repeated rows"] += 1
        self._check_files([(sample.path, row) for sample, _, row in known.values()])
        return classes, self._complete(splits, classes)

    def _complete(self, splits: dict[str, list[Sample]], classes: Sequence[str]) -> dict[Split, list[Sample]]:
        """Return the samples by split, either as in the table or drawn here."""
        if self._split is None and not self.makes_split:
            return {"train": splits[""]}
        if self._split is None:
            failure = f"{self.table}: cannot split it into train and test"
            train, test = split_off(splits[""], classes, self.test_fraction, 0, failure)
            return {"train": train, "test": test}
        if self.makes_split and ("train" not in splits or len(splits) == 1):
            raise CxlpError(
                f"{self.table}: column {self._split} contains only {', '.join(splits)}, but train and test are needed: "
                "add them, or rename the column to have a test set drawn"
            )
        if "test" not in splits and "val" in splits:
            self.notes.append("no row has the split test: the test images are those of val")
            splits["test"] = splits.pop("val")
        return {name: splits[name] for name in ("train", "val", "test") if name in splits}

    # --- cells ------------------------------------------------------------------------------------

    def _read_labels(self) -> tuple[tuple[str, ...], list[int | tuple[int, ...]]]:
        rows = self._rows.rows
        if self._classes:
            used = {self._path, self._split, *self._box, *self._classes, ""}
            if others := [column for column in self._rows.columns if column not in used]:
                self.notes.append(f"unused columns: {', '.join(others)}")
            return tuple(self._classes), self._read_marks()
        if self._label is not None:
            for row in rows:
                if not row.cells[self._label]:
                    raise CxlpError(f"{row.where}: {self._label} is blank: add a label, or leave the row out")
            single = [str(row.cells[self._label]) for row in rows]
            classes = _ordered(single)
            indices = {name: k for k, name in enumerate(classes)}
            self.notes += notes_on_similar(classes, "labels")
            return classes, [indices[label] for label in single]
        several = self._split_labels([row.cells[str(self._labels)] for row in rows])
        classes = _ordered(label for found in several for label in found)
        self.notes += notes_on_similar(classes, "labels")
        return classes, [tuple(1 if name in found else -1 for name in classes) for found in map(set, several)]

    def _split_labels(self, cells: Sequence[Cell]) -> list[list[str]]:
        """Return the labels in each cell."""
        texts = {cell for cell in cells if isinstance(cell, str) and cell}
        separator = self.separator
        if separator is None and texts:
            separator = next((sign for sign in ";|," if any(sign in text for text in texts)), "")
            if not separator and len({word for text in texts for word in text.split()}) < len(texts):
                separator = " "
            if separator:
                self.notes.append(f"labels are split at {separator!r}: to change this, set data.separator")
        parts = [cell if isinstance(cell, list) else cell.split(separator) if separator else [cell] for cell in cells]
        return [[label.strip() for label in part if label.strip()] for part in parts]

    def _read_marks(self) -> list[int | tuple[int, ...]]:
        """Return the labels if each class has a column."""
        marks = []
        for row in self._rows.rows:
            for name in self._classes:
                if not self._is_mark(row.cells[name]):
                    raise CxlpError(
                        f"{row.where}: {name} is {row.cells[name]!r}: it must be 1 (present), 0 (absent), blank or -1 "
                        "(unspecified). If it is not a class, set data.class_columns"
                    )
            marks.append([str(row.cells[name]).lower() for name in self._classes])
        said = Counter(mark for row in marks for mark in row)
        values, minus = dict(_VALUES), said["-1"] + said["-1.0"]
        if minus and not any(values[mark] == -1 for mark in said):
            values |= {"-1": -1, "-1.0": -1}
            self.notes.append("-1 means absent, because 0 does not occur")
        elif minus:
            self.notes.append(f"-1, which occurs {minus:,} times, means unspecified, and 0 means absent")
        return [tuple(values[mark] for mark in row) for row in marks]

    def _file(self, name: str) -> Path:
        path = self.root / name
        if "\\" in name and not is_there(path):  # written on Windows
            path = self.root / name.replace("\\", "/")
        return path

    def _read_box(self, row: Row) -> Box | None:
        if not self.bbox or not self._box:
            return None
        values = [str(row.cells[column]) for column in self._box]
        return None if all(value.lower() in _NO_BOX for value in values) else as_box(values, row.where)

    def _read_split(self, row: Row) -> str:
        """Return the split of a row; without a split column, an empty string."""
        if self._split is None:
            return ""
        said = str(row.cells[self._split])
        if (split := split_of(said)) is None:
            raise CxlpError(f"{row.where}: {self._split} is {said!r}: it must be train, val or test")
        return split

    def _check_files(self, files: Sequence[tuple[Path, Row]]) -> None:
        lacking = [] if self.on_broken == "skip" else [(path, row) for path, row in files if not is_there(path)]
        if lacking:
            path, row = lacking[0]
            raise CxlpError(
                f"{row.where}: image not found: {path}; {len(lacking):,} of {len(files):,} are missing. Paths are "
                f"relative to {self.root.absolute()}: set data.root, or data.on_broken: skip"
            )

    # --- columns ----------------------------------------------------------------------------------

    def _match(self, name: str) -> str | None:
        same = [column for column in self._rows.columns if column.lower() == name.lower()]
        return same[0] if same else None

    def _column(self, option: str, given: str | None, names: Sequence[str]) -> str | None:
        """Return the column named by an option, or else the first with a usual name."""
        if given is None:
            return next((column for name in names if (column := self._match(name))), None)
        if (column := self._match(given)) is None:
            near = did_you_mean(given, self._rows.columns)
            raise CxlpError(f"data.{option}: {self.table} has no column {given!r}. {near}")
        return column

    @staticmethod
    def _is_mark(cell: Cell) -> bool:
        return str(cell).lower() in _VALUES

    def _class_columns(self) -> list[str]:
        """Return columns mostly of 0, 1, -1 and blanks; a few other values raise an error when they are read."""
        found = []
        for column in self._rows.columns:
            said = [cell for row in self._rows.rows if (cell := row.cells[column])]
            valid = sum(map(self._is_mark, said))
            if column and column not in (self._path, self._split, *self._box) and valid > len(said) / 2:
                found.append(column)
        if not found:
            raise CxlpError(
                f"{self.table} has no column of labels: set data.label_column (one label per image) or "
                "data.labels_column (several labels), or add a column of 0 and 1 for each class. Its columns are "
                f"{self._named()}"
            )
        return found

    def _named(self) -> str:
        return ", ".join(map(repr, self._rows.columns[:12])) + (", ..." if len(self._rows.columns) > 12 else "")


def _ordered(labels: Any) -> tuple[str, ...]:  # noqa: ANN401 (an iterable of texts)
    """Return the distinct labels in alphabetical order, or by value if all are numbers; ties alphabetically."""
    found = sorted(set(labels))  # the order of a set differs between processes
    return tuple(sorted(found, key=int) if all(map(str.isdecimal, found)) else found)
