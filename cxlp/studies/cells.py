"""Results of several comparisons of the same systems. A comparison (one data set and backbone) is a cell."""

import csv
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cxlp.utils.errors import CxlpError


class Cells(NamedTuple):
    """The results of the systems that all comparisons share.

    Attributes:
        cells: Names of the comparisons.
        systems: Names of the systems.
        values: Accuracy or mAP of the test images, in percent: ``(cells, systems)``.
    """

    cells: list[str]
    systems: list[str]
    values: NDArray[np.float64]


def read_cells(folders: Sequence[Path]) -> Cells:
    """Read the tables of comparisons, ``results.csv`` in their folders.

    Raises:
        CxlpError: If a table is missing or broken, or there are fewer than two comparisons or shared systems.
    """
    folders = list(dict.fromkeys(folders))
    if len(folders) < 2:
        raise CxlpError("runs cells: name the folders of at least two comparisons (cxlp compare --out DIR)")
    tables = [_read(folder) for folder in folders]
    shared = [name for name in tables[0] if all(name in table for table in tables)]
    if len(shared) < 2:
        raise CxlpError(
            f"the comparisons {', '.join(map(str, folders))} share {'one system' if shared else 'no system'}: compare "
            "the same --systems in each"
        )
    values = np.array([[table[name] for name in shared] for table in tables])
    names = [folder.name for folder in folders]
    return Cells(names if len(set(names)) == len(names) else [str(folder) for folder in folders], shared, values)


def _read(folder: Path) -> dict[str, float]:
    """Read the test column of a comparison's table, by system."""
    file = folder / "results.csv"
    try:
        with file.open(newline="", encoding="utf-8") as opened:
            rows = list(csv.DictReader(opened))
        column = next(head for head in rows[0] if head.startswith("test "))
        values = {row["system"]: float(row[column]) for row in rows if row[column]}
        if not all(map(isfinite, values.values())):
            raise ValueError(f"not finite: {values}")
        return values
    except FileNotFoundError as error:
        raise CxlpError(f"{file} is missing: name the folder of a comparison (cxlp compare --out DIR)") from error
    except (OSError, ValueError, KeyError, IndexError, StopIteration) as error:
        raise CxlpError(f"{file} is not the table of a comparison: run the same cxlp compare again") from error
