"""Preprocessing of a run's command line: find config files by name and put them first."""

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

import cxlp
from cxlp.data import DATA_MODULES
from cxlp.utils.errors import CxlpError, did_you_mean
from cxlp.utils.program import train_program
from cxlp.utils.sources import exported

_PACKAGE = Path(cxlp.__file__).parent
#: Folder of the shipped configs: inside the installed package, or beside the package in a checkout.
CONFIGS = next(p / "configs" for p in (_PACKAGE, _PACKAGE.parent) if (p / "configs").is_dir())
#: The config that is for ``wandb sweep``, not for runs.
SEARCH = "sweep.yaml"
#: The classes that ``class_path`` may name, besides a user's own subclasses.
CLASSES = {
    "data": tuple(DATA_MODULES.values()),
    "model.head": tuple(f"cxlp.heads.{name}" for name in exported("cxlp.heads") if name != "Head"),
}
#: The arguments that ``--model NAME`` is replaced by, for each mode's name.
MODES = {"FineTune": ("--config", "finetune.yaml"), "Frozen": ("--trainer.max_epochs", "0")}
#: The default head.
HEAD = "CrossLayerPooling"
#: Trainer defaults that differ from Lightning's. No sanity check, since it would score a few images of a few classes.
TRAINER = {"max_epochs": 0, "num_sanity_val_steps": 0, "log_every_n_steps": 10, "enable_model_summary": False}
#: Keys outside the groups, with their types.
OWN: dict[str, Any] = {"ckpt_path": str | None, "seeds": int | None}
#: All keys and groups of keys.
KEYS = ("config", "seed_everything", "model", "data", "trainer", "run", *OWN, "print_config", "help", "help-all")


def load_yaml(text: str) -> Any:  # noqa: ANN401 (any value)
    """Read YAML as the parser does: dates are strings, and 1e3 is a number."""
    return get_loader("yaml")(text)


def find_configs(args: Sequence[str]) -> list[str]:
    """Replace each ``--config NAME`` by the path of its file, and put the configs first.

    Files are looked up in the working directory, then in ``configs/``.

    ``--data NAME``, the name of a class or of a data set such as ``torchvision``, is put after the configs. If no
    config describes the data, it is put before them, so that overlays apply to it. ``--model FineTune`` and
    ``--model Frozen``, the names of the two modes, are replaced as in :data:`MODES`.

    Raises:
        CxlpError: If a config file does not exist; lists the shipped ones.
    """
    if not args or not args[0].startswith("-"):
        what = f"{args[0]!r} is not an option" if args else "there is nothing to run"
        raise CxlpError(f"{what}: name a config, {train_program()} --config {args[0] if args else 'demo.yaml'}")
    found = _expand_modes(args)
    for i, arg in enumerate(found):
        if arg in ("--config", "-c") and i + 1 < len(found):
            found[i + 1] = str(_config_path(found[i + 1]))
        elif arg.startswith("--config="):
            found[i] = f"--config={_config_path(arg.removeprefix('--config='))}"
    # Configs first, so that keys on the command line override them. Then the class of the data set, so that the other
    # options of the data apply to it.
    configs: list[str] = []
    data: list[str] = []
    others: list[str] = []
    while found:
        arg = found.pop(0)
        if arg in ("--config", "-c") and found:
            configs += [arg, found.pop(0)]
        elif arg == "--data" and found:
            data = [arg, DATA_MODULES.get(found[0], found.pop(0))]
        elif arg.startswith("--data="):
            name = arg.removeprefix("--data=")
            data = [f"--data={DATA_MODULES.get(name, name)}"]
        else:
            (configs if arg.startswith("--config=") else others).append(arg)
    paths = [c.removeprefix("--config=") for c in configs if c not in ("--config", "-c")]
    described = _check_overlays(paths, bool(data))
    _check_values(others)
    return configs + data + others if described else data + configs + others


def _expand_modes(args: Sequence[str]) -> list[str]:
    """Replace the name of a mode by the arguments of that mode."""
    found: list[str] = []
    for arg in args:
        if found and found[-1] == "--model" and arg in MODES:
            found[-1:] = MODES[arg]
        else:
            found += MODES.get(arg.removeprefix("--model="), (arg,)) if arg.startswith("--model=") else (arg,)
    return found


def given_configs(args: Sequence[str]) -> list[Path]:
    """Find the files of ``--config NAME``, in the given order.

    Raises:
        CxlpError: If a config file does not exist; lists the shipped ones.
    """
    pairs = itertools.pairwise([*args, ""])
    names = [value for arg, value in pairs if arg in ("--config", "-c")]
    return [_config_path(name) for name in [*names, *(a[9:] for a in args if a.startswith("--config="))]]


def separate_head_lists(args: Sequence[str]) -> list[str]:
    """Prevent a list of heads from inheriting the options of a single head that was given before it.

    The parser copies a single head's options to each member of a following list, but copies nothing from an earlier
    list. An empty list is therefore inserted before each list.

    Raises:
        CxlpError: If an option of ``model.head`` follows a list; the parser would change only the list's last member.
    """
    parted: list[str] = []
    several = False
    for arg, following in itertools.pairwise([*args, ""]):
        name, _, value = arg.partition("=")
        value = value or following
        if several and name.startswith("--model.head.") and name != "--model.head.help":
            raise CxlpError(f"{name}: model.head is a list of heads: give the options inside the list")
        given: Any = None
        if name in ("--config", "-c"):
            model = load_yaml(Path(value).read_text(encoding="utf-8-sig")).get("model")
            given = model.get("head") if isinstance(model, dict) else None
        elif name == "--model.head":
            given = [] if value.lstrip().startswith("[") else value
        several = several if given is None else isinstance(given, list)
        if isinstance(given, list):
            parted.append("--model.head=[]")
        parted.append(arg)
    return parted


def _check_values(arguments: Sequence[str]) -> None:
    """Reject a key without a value; the parser's own error would name only the key's group."""
    for arg, following in itertools.pairwise([*arguments, "--"]):
        option = arg.startswith(tuple(f"--{group}." for group in CLASSES)) and not arg.endswith(".help")
        if option and "=" not in arg and following.startswith("--"):
            raise CxlpError(f"{arg} has no value: give {arg} VALUE")


def _check_overlays(paths: Sequence[str], given: bool) -> bool:
    """Reject files that contain no keys, and overlays that precede the config that they modify.

    Args:
        paths: The config files.
        given: Whether the command line names the data set.

    Returns:
        Whether one of the files describes the data set.
    """
    described = False
    for path in paths:
        content = read_yaml(path)
        if not isinstance(content, dict):
            raise CxlpError(f"{path} contains no keys: it is {'empty' if content is None else repr(content)}")
        empty = [key for key in ("model", "data", "trainer", "run") if key in content and content[key] is None]
        if empty:
            raise CxlpError(f"{path}: {empty[0]} is null, but it is a group of keys: remove it to use the defaults")
        if "program" in content:
            raise CxlpError(f"{path} is a wandb sweep, not a config of a run: start it with wandb sweep {path}")
        described |= describes_data(content)
        if content.get("data") and not described and not given:
            raise CxlpError(
                f"{path} is an overlay: it changes options of data, but no config before it names a data set. Put one "
                "before it, such as --config cub200.yaml"
            )
    return described


def describes_data(content: Mapping[str, Any]) -> bool:
    """Whether a config names a data set; an overlay does not, though it may change options of the data."""
    data = content.get("data")
    return isinstance(data, str) or (isinstance(data, Mapping) and "class_path" in data)


def read_yaml(path: str) -> Any:  # noqa: ANN401 (any value)
    """Read a file as YAML.

    Raises:
        CxlpError: If the file cannot be read, is not YAML, contains itself, or has a key that is not a string.
    """
    try:
        content = load_yaml(Path(path).read_text(encoding="utf-8-sig"))
        json.dumps(content, default=str)  # rejects a value that contains itself
    except OSError as error:
        raise CxlpError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise CxlpError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    wrong = [key for key in content if not isinstance(key, str)] if isinstance(content, dict) else []
    if wrong:
        raise CxlpError(f"{path}: the key {wrong[0]!r} is not a string")
    return content


def _config_path(name: str) -> Path:
    candidates = [Path(name), Path("configs") / name, CONFIGS / name] if Path(name).name else []
    for path in candidates:
        for spelled in (path, path.with_name(path.name + ".yaml")):
            if os.path.isfile(spelled):  # noqa: PTH113 (pathlib's is_file raises for invalid paths)
                return spelled.absolute()
    shipped = sorted(p.name for p in CONFIGS.glob("*.yaml") if p.name != SEARCH)
    raise CxlpError(f"config file not found: {name} (nor in {CONFIGS}). {did_you_mean(name, shipped)}")
