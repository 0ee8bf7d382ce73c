"""Conversion of keys given in Python to command-line arguments, so that one parser checks both."""

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
#: Folder below ``run.root`` for DataFrames that runs use as tables.
TABLES = "tables"


def as_arguments(config: Config | Sequence[Config], overrides: Mapping[str, Any]) -> list[str]:
    """Convert configs and overrides to arguments of ``train.py``.

    Args:
        config: A config, or several; later ones override earlier ones.
        overrides: Values by key, dotted (``"data.root"``) or nested. The value of a class key may be a class or a head.
            A DataFrame as ``data.table`` is written to a file below ``run.root``, so that the run's config can name it.

    Raises:
        CxlpError: If a value cannot be represented in a config.
    """
    if isinstance(config, Mapping):
        raise CxlpError(
            "the first argument is a dictionary, but must be the config's name: train('cub200.yaml', {...})"
        )
    configs = [config] if isinstance(config, str | os.PathLike) else config
    if not isinstance(configs, Sequence) or not all(isinstance(name, str | os.PathLike) for name in configs):
        raise CxlpError(f"config is {config!r}: give a config's name, such as 'cub200.yaml', or a list of names")
    if not isinstance(overrides, Mapping):
        raise CxlpError(f"overrides is {overrides!r}: give a dictionary, such as {{'data.root': 'photos'}}")
    values = {name: part for key, value in overrides.items() for name, part in _leaves(key, value)}
    if hasattr(values.get("data.table"), "columns"):
        values |= _write_table(values["data.table"], values)
    options = [f"--{key}={_text(key, value)}" for key, value in values.items()]
    return [*(f"--config={os.fspath(name)}" for name in configs), *options]


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 (any value of a config)
    """Iterate over all keys, named as on the command line, and their values; a class precedes its options."""
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
    """Format a value as on the command line."""
    value = _plain(key, value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _plain(key: str, value: Any) -> Any:  # noqa: ANN401 (any value of a config)
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "spec"):  # a head, with all its options, so that none from a config remain
        return value.spec()
    if hasattr(value, "tolist"):  # a NumPy array or scalar
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): _plain(f"{key}.{name}", part) for name, part in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(key, part) for part in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CxlpError(
        f"{key} is an object of class {type(value).__name__}, which a config cannot represent: give "
        f'{{"class_path": "{type(value).__module__}.{type(value).__qualname__}", "init_args": {{...}}}}'
    )


def _write_table(frame: Any, values: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ANN401 (pandas and polars are optional)
    """Write a DataFrame to a file that later processes can find; return the keys that refer to the file."""
    columns, rows = rows_of(frame)
    cells = [[row.cells[column] for column in columns] for row in rows]
    lists = [cell for row in cells for cell in row if isinstance(cell, list)]
    keys: dict[str, Any] = {}
    if lists:
        free = [sign for sign in ";|,/#" if not any(sign in label for cell in lists for label in cell)]
        if not free:
            raise CxlpError(
                "data.table: labels in lists contain all of ; | , / #, but one is needed as separator: rename labels"
            )
        keys["data.separator"] = free[0]
    text = as_csv(columns, [[free[0].join(c) if isinstance(c, list) else c for c in row] for row in cells])
    path = Path(str(values.get("run.root") or "runs"), TABLES, f"frame-{sha256(text.encode()).hexdigest()[:12]}.csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)
    # Paths are relative to the working directory, as when a DataFrame is passed to Table.
    return {**keys, "data.table": path, "data.root": values.get("data.root") or "."}
