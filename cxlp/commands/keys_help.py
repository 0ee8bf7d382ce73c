"""Help pages of groups of keys, such as ``--model.help`` and ``--data.help NAME``.

They are read from the source files, without importing torch.
"""

import re
import textwrap
from collections.abc import Sequence

from cxlp.data import DATA_MODULES
from cxlp.runs.arguments import CLASSES, HEAD, TRAINER
from cxlp.utils.errors import CxlpError, did_you_mean
from cxlp.utils.sources import Described, describe

#: The class whose arguments are the keys of each group; for ``model.head`` and ``data``, the default class.
GROUPS = {
    "model": "cxlp.runs.recipe.ModelConfig",
    "model.backbone": "cxlp.backbones.backbone.BackboneConfig",
    "model.head": f"cxlp.heads.{HEAD}",
    "model.head.views": "cxlp.heads.views.Views",
    "model.test_views": "cxlp.heads.views.Views",
    "model.frozen": "cxlp.frozen.config.FrozenConfig",
    "model.optimizer": "cxlp.tasks.optim.OptimizerConfig",
    "data": "cxlp.data.datamodule.ImageDataModule",
    "data.augment": "cxlp.data.transforms.AugmentConfig",
    "trainer": "pytorch_lightning.Trainer",
    "run": "cxlp.runs.loggers.RunConfig",
}
_WIDTH = 100


def keys_help(arguments: Sequence[str]) -> str | None:
    """Return the help page that the first argument of the form ``--GROUP.help [CLASS]`` asks for.

    Args:
        arguments: The arguments of ``train.py``.

    Returns:
        The page, or ``None`` without such an argument.

    Raises:
        CxlpError: If the group or class does not exist.
    """
    for number, argument in enumerate(arguments):
        asked = re.fullmatch(r"--([\w.]+)\.help(?:=(.+))?", argument)
        if asked:
            following = arguments[number + 1 : number + 2]
            name = asked[2] or next((word for word in following if not word.startswith("-")), None)
            return _page(asked[1], name)
    return None


def _page(group: str, name: str | None) -> str:
    if group not in GROUPS:
        raise CxlpError(f"--{group}.help: there is no group of keys {group}. {did_you_mean(group, GROUPS)}")
    valid = CLASSES.get(group, ())
    path = GROUPS[group]
    if name is not None:
        if not valid:
            raise CxlpError(f"--{group}.help {name}: {group} has no classes; leave out {name}")
        short = {p.rpartition(".")[2]: p for p in valid} | (DATA_MODULES if group == "data" else {})
        path = short.get(name, name)
    found = describe(path) if "." in path else None
    if found is None:
        names = [p.rpartition(".")[2] for p in valid]
        raise CxlpError(f"--{group}.help: class {name or path} not found. {did_you_mean(name or path, names)}")
    first, options = found
    nested = {key for key in GROUPS if key.rpartition(".")[0] == group}
    title = f"{group}, {path.rpartition('.')[2]}" if valid else group
    lines = [f"{title}: {_plain(first)}", ""]
    for option in options:
        key = f"{group}.{option.name}"
        lines += _described(key, option, key in nested)
    if valid:
        lines += ["", *textwrap.wrap(f"--{group}.help NAME: {', '.join(p.rpartition('.')[2] for p in valid)}", _WIDTH)]
    return "\n".join(lines) + "\n"


def _described(key: str, option: Described, is_group: bool) -> list[str]:
    """Return the lines for a key: its type, default and meaning; for a nested group, its own help option."""
    if is_group:
        head = f"  --{key}.*  (a group: --{key}.help)"
    else:
        default = (
            str(TRAINER.get(option.name, option.default)).lower() if key.startswith("trainer.") else option.default
        )
        default = "must be given" if default is None else f"default: {default}"
        head = f"  --{key} {option.kind}  ({default})"
    meaning = textwrap.wrap(_plain(option.meaning), _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return [head, *meaning]


def _plain(text: str) -> str:
    """Remove docstring markup."""
    return re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"\1", text).replace("``", "").replace("`", "")
