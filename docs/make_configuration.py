"""``docs/configuration.md``: every key of the configs, from the signatures and docstrings that define them.

Made anew with ``PYTHONPATH=. python docs/make_configuration.py > docs/configuration.md``; a test compares the two.
"""

import inspect
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from docstring_parser import DocstringStyle
from docstring_parser import parse as parse_docstring

import cxlp.heads
from cxlp.backbones.backbone import BackboneConfig
from cxlp.data import DATA_MODULES
from cxlp.data.benchmark import Benchmark
from cxlp.data.datamodule import ImageDataModule
from cxlp.data.transforms import AugmentConfig
from cxlp.frozen.fit import FrozenConfig
from cxlp.heads.normalisation import Normalise
from cxlp.heads.views import Views
from cxlp.runs.loggers import RunConfig
from cxlp.runs.recipe import ModelConfig
from cxlp.tasks.optim import OptimizerConfig

#: Title of a section, and the class that defines its keys.
SECTIONS: tuple[tuple[str, type], ...] = (
    ("`run`: the run as such", RunConfig),
    ("`model`: the network, and the stages that fit it", ModelConfig),
    ("`model.backbone`: the network, and where it is cut", BackboneConfig),
    *(
        (f"`model.head`, `class_path: {name}`", getattr(cxlp.heads, name))
        for name in ("CrossLayerPooling", *sorted(set(cxlp.heads.__all__) - {"CrossLayerPooling", "Head"}))
    ),
    ("`model.test_views`, and a head's `views`: views of an image", Views),
    ("`model.frozen`: the fit without gradients", FrozenConfig),
    ("`model.optimizer`: gradient descent", OptimizerConfig),
    ("`data`: the images, of every data set", ImageDataModule),
    ("`data`: besides, of the benchmarks, which are downloaded", Benchmark),
    ("`data.augment`: random changes of training images", AugmentConfig),
)

_HEAD = """# Configuration

Every key of the configs. `model.head` and `data` name a class (`class_path`) and its options (`init_args`); on the
command line both are shorter: `--model.head BilinearPooling --model.head.pca_dim 128`. Besides these keys there are
`seed_everything`, `seeds` and `ckpt_path`, and those of Lightning's Trainer (`trainer.*`): see `python train.py
--help-all`. This page is made by `PYTHONPATH=. python docs/make_configuration.py > docs/configuration.md`.
"""


def reference() -> str:
    """Write the page."""
    page = [_HEAD]
    common = {name for name, *_ in _options(ImageDataModule)}
    for title, cls in SECTIONS:
        rows = (row for row in _options(cls) if cls is not Benchmark or row[0] not in common)
        page += [f"## {title}\n", _table(rows)]
    for name, path in DATA_MODULES.items():
        module, _, class_name = path.rpartition(".")
        own = [row for row in _options(getattr(import_module(module), class_name)) if row[0] not in common]
        if own:
            page += [f"## `data`, `class_path: {class_name}`: what `{name}` has besides\n", _table(own)]
    return "\n".join(page)


def _options(cls: type) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and meaning of each option that is a plain value."""
    said = _meanings(cls)
    if is_dataclass(cls):
        given = [(f.name, f.type, _default(f)) for f in fields(cls)]
    else:
        given = [(p.name, p.annotation, p.default) for p in inspect.signature(cls).parameters.values()]
    for name, kind, default in given:
        if is_dataclass(default) or name in ("args", "kwargs", "common"):
            continue  # a section of its own
        yield name, _kind(kind), "" if default is inspect.Parameter.empty else _value(default), said.get(name, "")


def _meanings(described: Any) -> dict[str, str]:  # noqa: ANN401 (a class or a function)
    """What a docstring says of each argument.

    Where one sentence is about several, as ``sqrt, l2: The normalisation``, each one's own is that of
    :class:`~cxlp.heads.normalisation.Normalise` or of a base class.
    """
    found: dict[str, str] = {}
    for parameter in parse_docstring(inspect.getdoc(described) or "", style=DocstringStyle.GOOGLE).params:
        names = parameter.arg_name.split(", ")
        meaning = " ".join((parameter.description or "").split())
        for name in names:
            found[name] = meaning if len(names) == 1 else _elsewhere(described, name)
    return found


def _elsewhere(cls: type, name: str) -> str:
    return _meanings(Normalise).get(name) or next(found for c in cls.__mro__[1:] if (found := _meanings(c).get(name)))


def _default(field: Field[Any]) -> Any:  # noqa: ANN401 (any default)
    if isinstance(field.default_factory, type):
        return field.default_factory.__name__
    return inspect.Parameter.empty if field.default is MISSING else field.default


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
        meaning = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", meaning).replace("``", "`").replace("`None`", "null")
        lines.append(f"| `{name}` | {_cell(kind)} | {_cell(shown)} | {_cell(meaning)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(reference())
