"""Keys given in Python, as arguments of the command line: both are parsed and checked in one place."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from cxlp.data.table_files import rows_of
from cxlp.reports.formatting import as_csv
from cxlp.utils.errors import CxlpError
from cxlp.utils.files import write_whole

Config = str | os.PathLike[str]
#: Below ``run.root``: the DataFrames of its runs.
TABLES = "tables"


def as_arguments(config: Config | Sequence[Config], overrides: Mapping[str, Any]) -> list[str]:
    """Make the arguments of ``train.py``.

    Args:
        config: A config, or several, of which later ones overlay earlier ones.
        overrides: Values by key, dotted (``"data.root"``) or nested. Where a class stands, a class itself or a head
            will do. A DataFrame as ``data.table`` is written below the folder of runs, for the run's config to name it.

    Raises:
        CxlpError: If a value is an object that no config can hold.
    """
    if isinstance(config, Mapping):
        raise CxlpError("the config's name comes first, then the keys that change it: train('cub200.yaml', {...})")
    configs = [config] if isinstance(config, str | os.PathLike) else config
    if not isinstance(configs, Sequence) or not all(isinstance(name, str | os.PathLike) for name in configs):
        raise CxlpError(f"the config is {config!r}: give its name, or several in a list, such as 'cub200.yaml'")
    if not isinstance(overrides, Mapping):
        raise CxlpError(f"the keys are {overrides!r}: give a dictionary, such as {{'data.root': 'photos'}}")
    values = {name: part for key, value in overrides.items() for name, part in _leaves(key, value)}
    if hasattr(values.get("data.table"), "columns"):
        values |= _written(values["data.table"], values)
    options = [f"--{key}={_text(key, value)}" for key, value in values.items()]
    return [*(f"--config={os.fspath(name)}" for name in configs), *options]


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 (any value of a config)
    """Go through the values that stand at keys, as the command line names these: a class before its options."""
    if not isinstance(value, Mapping) or not value:
        yield key, value
        return
    if "class_path" in value:
        yield key, value["class_path"]
    for name, part in value.items():
        if name == "init_args":
            yield from _leaves(key, part) if part else ()
        elif name != "class_path":
            yield from _leaves(f"{key}.{name}", part)


def _text(key: str, value: Any) -> str:  # noqa: ANN401 (any value of a config)
    """Write a value as one does on the command line."""
    value = _plain(key, value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _plain(key: str, value: Any) -> Any:  # noqa: ANN401 (any value of a config)
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "spec"):  # a head: with all its options, so that none of a config's stays
        return value.spec()
    if hasattr(value, "tolist"):  # of NumPy
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): _plain(f"{key}.{name}", part) for name, part in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(key, part) for part in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CxlpError(
        f"{key} is an object of class {type(value).__name__}, which the run's config cannot hold: give "
        f'{{"class_path": "{type(value).__module__}.{type(value).__qualname__}", "init_args": {{...}}}}'
    )


def _written(frame: Any, values: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ANN401 (pandas and polars are optional)
    """Write a DataFrame where any later process finds it; returns the keys that say so."""
    columns, rows = rows_of(frame)
    cells = [[row.cells[column] for column in columns] for row in rows]
    lists = [cell for row in cells for cell in row if isinstance(cell, list)]
    keys: dict[str, Any] = {}
    if lists:
        free = [sign for sign in ";|,/#" if not any(sign in label for cell in lists for label in cell)]
        if not free:
            raise CxlpError(
                "data.table: labels in lists hold each of ; | , / #, one of which must part them: rename some"
            )
        keys["data.separator"] = free[0]
    text = as_csv(columns, [[free[0].join(c) if isinstance(c, list) else c for c in row] for row in cells])
    path = Path(str(values.get("run.root") or "runs"), TABLES, f"frame-{sha256(text.encode()).hexdigest()[:12]}.csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)
    # Paths are relative to the working directory, as where a DataFrame is given to Table.
    return {**keys, "data.table": path, "data.root": values.get("data.root") or "."}
