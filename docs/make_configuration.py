"""``docs/configuration.md``: every key of the configs, from the signatures and docstrings that define them.

Made anew with ``python docs/make_configuration.py > docs/configuration.md``; a test compares the two.
"""

import inspect
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from docstring_parser import DocstringStyle
from docstring_parser import parse as parse_docstring

from cxlp.backbones.backbone import BackboneConfig
from cxlp.data import DATA_MODULES
from cxlp.data.datamodule import ImageDataModule
from cxlp.data.transforms import AugmentConfig
from cxlp.frozen.fit import FrozenConfig
from cxlp.models.branch import PoolingConfig
from cxlp.models.network import NetworkConfig
from cxlp.models.views import ViewsConfig
from cxlp.runs.loggers import RunConfig
from cxlp.tasks import FineTune
from cxlp.tasks.optim import OptimizerConfig

#: Prefix of the keys, what they are, and where they are defined.
SECTIONS: tuple[tuple[str, str, type], ...] = (
    ("run", "The run as such", RunConfig),
    ("model", "What fine-tuning has besides (`class_path: cxlp.tasks.FineTune`)", FineTune),
    ("model.network", "The network", NetworkConfig),
    ("model.network.backbone", "The backbone, and where it is cut", BackboneConfig),
    ("model.network.pooling", "What is made of its maps; `also` is a list of such", PoolingConfig),
    ("model.network.pooling.views", "Views of an image; `model.network.test_views` has the same keys", ViewsConfig),
    ("model.frozen", "The fit without gradients", FrozenConfig),
    ("model.optimizer", "Gradient descent", OptimizerConfig),
    ("data", "Images, for every data set", ImageDataModule),
    ("data.augment", "Random changes of training images", AugmentConfig),
)

_HEAD = """# Configuration

Every key of the configs. On the command line `init_args` is left out: `--model.network.pooling.pca_dim 128`. Beside
these there are `seed_everything`, `ckpt_path`, `seeds` (see `python train.py --help`) and all keys of Lightning's
Trainer (`trainer.*`). This page is made by `python docs/make_configuration.py > docs/configuration.md`.
"""


def reference() -> str:
    """Write the page."""
    page = [_HEAD]
    for prefix, title, cls in SECTIONS:
        page += [f"## `{prefix}`: {title}\n", _table(_options(cls))]
    common = {name for name, *_ in _options(ImageDataModule)}
    for name, path in DATA_MODULES.items():
        module, _, class_name = path.rpartition(".")
        own = [row for row in _options(getattr(import_module(module), class_name)) if row[0] not in common]
        if own:
            page += [f"## `data`, of `{name}` (`class_path: {path}`)\n", _table(own)]
    return "\n".join(page)


def _options(cls: type) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and meaning of each option that is a plain value."""
    docstring = parse_docstring(inspect.getdoc(cls) or "", style=DocstringStyle.GOOGLE)
    said = {p.arg_name: " ".join((p.description or "").split()) for p in docstring.params}
    if is_dataclass(cls):
        given = [(f.name, f.type, inspect.Parameter.empty if f.default is MISSING else f.default) for f in fields(cls)]
    else:
        given = [(p.name, p.annotation, p.default) for p in inspect.signature(cls).parameters.values()]
    for name, kind, default in given:
        if is_dataclass(default) or name in ("args", "kwargs", "common"):
            continue  # a section of its own
        yield name, _kind(kind), "" if default is inspect.Parameter.empty else _value(default), said.get(name, "")


def _kind(annotation: Any) -> str:  # noqa: ANN401 (any annotation)
    """A type for people, the same in each version of Python."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, inner))
    if origin in (Union, UnionType):
        return " | ".join(map(_kind, inner))
    if origin in (tuple, list, Sequence):
        kinds = [_kind(kind) for kind in inner if kind is not ...]
        return f"list of {kinds[0]}" if origin is not tuple or ... in inner else f"[{', '.join(kinds)}]"
    name: str = {type(None): "null", Path: "path"}.get(annotation, annotation.__name__)
    return name


def _value(default: Any) -> str:  # noqa: ANN401 (any default)
    return json.dumps(default, default=str)


def _table(rows: Iterator[tuple[str, str, str, str]] | list[tuple[str, str, str, str]]) -> str:
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, kind, default, meaning in rows:
        shown = "" if not default else f"`{default}`"
        # Roles of Sphinx become plain names.
        meaning = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", meaning).replace("``", "`")
        lines.append(f"| `{name}` | {_cell(kind)} | {_cell(shown)} | {_cell(meaning)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(reference())
