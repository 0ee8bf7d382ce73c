"""Early checks of a run's arguments, made before the import of torch, which takes seconds.

These checks reject only what the parser of :mod:`cxlp.runs.cli`, or the run itself, would reject, with the same
messages. The parser checks what is unknown here, such as the options of a user's own class.
"""

import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser

from cxlp.backbones.weights_file import find_weights
from cxlp.data import DATA_MODULES
from cxlp.data.listing import check_folder
from cxlp.data.table_files import check_table
from cxlp.data.torchvision_sets import find_data_set
from cxlp.runs.arguments import CLASSES, HEAD, OWN, find_configs, given_configs, load_yaml, read_yaml
from cxlp.runs.config_errors import no_class, unknown_key, unknown_option, wrong_value
from cxlp.runs.places import STARTS, check_run_name, chosen_checkpoint, resumed_checkpoint, start_checkpoint
from cxlp.utils.errors import CxlpError
from cxlp.utils.program import was_restarted
from cxlp.utils.sources import Options, keys_of, options_of

#: The class that is built from each group of keys.
_GROUPS = {
    "model": "cxlp.runs.recipe.ModelConfig",
    "trainer": "pytorch_lightning.Trainer",
    "run": "cxlp.runs.loggers.RunConfig",
}
#: The base classes of user-defined classes, as module and name.
_BASES = {"model.head": ("cxlp.heads.base", "Head"), "data": ("cxlp.data.datamodule", "ImageDataModule")}


def check_early(arguments: Sequence[str]) -> dict[str, Any]:
    """Reject unknown keys and classes, values of a wrong type, and missing files.

    Args:
        arguments: Arguments of ``train.py``.

    Returns:
        The given values by key, unparsed; the keys of a group that is given as a single argument are not included.

    Raises:
        CxlpError: If an argument is invalid; describes the first problem.
    """
    given = _GivenOptions()
    for name, value in _options(find_configs(arguments)):
        if name in ("config", "c") and value is not None:
            content = load_yaml(Path(value).read_text(encoding="utf-8-sig"))
            for key, part in content.items():
                given.take([key], part)
        else:
            given.take(name.split("."), value)
    if not any(
        re.fullmatch(r"--([\w.]+\.)?print_config(=.*)?", arg) for arg in arguments
    ):  # printing a config needs no files
        given.check_files()
    return given.values


def known_options(arguments: Sequence[str]) -> Options:
    """List the keys that may follow the arguments of an incomplete command line, with their types.

    Args:
        arguments: Arguments of ``train.py``; invalid ones are ignored.
    """
    given = _GivenOptions()
    with suppress(CxlpError):
        for path in given_configs(arguments):
            for key, part in read_yaml(str(path)).items():
                with suppress(CxlpError):
                    given.take([key], part)
    for name, value in _options(arguments):
        if name not in ("config", "c"):
            with suppress(CxlpError):
                given.take(name.split("."), DATA_MODULES.get(value or "", value) if name == "data" else value)
    known = dict(_kinds({key: kind for key, kind in given.options.items() if key not in CLASSES}))
    for place in CLASSES:
        module, name = _BASES[place]
        known[place] = None
        known |= _kinds(options_of(given.classes[place] or f"{module}.{name}") or {}, f"{place}.")
    return known


def _kinds(options: Options, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Iterate over the keys of options and their types."""
    for key in keys_of(options):
        kind: Any = options
        for name in key.split("."):
            kind = kind[name]
        yield f"{prefix}{key}", kind


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Iterate over the names of options and their values; ``None`` for an option without a value."""
    for arg, following in itertools.pairwise([*arguments, "--"]):
        if arg == "--":
            return
        option = re.fullmatch(r"(?s)(-c|--[\w.]+)(=.*)?", arg)
        if option and not option[1].endswith((".help", "--print_config")):
            after = None if following.startswith("--") else following
            yield option[1].lstrip("-"), after if option[2] is None else option[2][1:]


def _imported(place: str) -> Iterator[str]:
    """Iterate over the names of the imported classes for a key: the parser knows these names."""
    module, name = _BASES[place]
    found = [getattr(sys.modules[module], name)] if module in sys.modules else []
    while found:
        cls = found.pop()
        yield cls.__name__
        found += cls.__subclasses__()


def _first_leaf(key: str, value: Any) -> str:  # noqa: ANN401 (any value of a file)
    """The first key with a plain value inside a nested value, as the parser names it."""
    while isinstance(value, dict) and value:
        name, value = next(iter(value.items()))
        key = f"{key}.{name}"
    return key


class _GivenOptions:
    """The keys and classes that were given so far, and the options that are valid next."""

    def __init__(self) -> None:
        groups = {key: options_of(path) for key, path in _GROUPS.items()}
        if trainer := groups["trainer"]:  # the parser adds precision last, with one more value
            groups["trainer"] = {
                **{key: kind for key, kind in trainer.items() if key != "precision"},
                "precision": None if trainer["precision"] is None else trainer["precision"] | Literal["auto"],
            }
        self.options: Options = {"config": None, "seed_everything": int, "model": None, "data": None}
        self.options |= {"trainer": None, "run": None, **OWN} | groups
        #: All keys, in the parser's order; empty if source files are missing.
        self.known: list[str] = []
        if None not in groups.values():
            head = {"class_path": str, **(options_of(f"cxlp.heads.{HEAD}") or {})}
            self.known = list(keys_of({**self.options, "model": {**self.options["model"], "head": head}}))
        # The class whose options are accepted now, by key; None: an unknown class, or several classes.
        self.classes: dict[str, str | None] = {"model.head": f"cxlp.heads.{HEAD}", "data": None}
        self.values: dict[str, Any] = {}
        self.has_own_classes = False  # the parser imports their modules and then knows all classes there

    def take(self, names: Sequence[str], value: Any) -> None:  # noqa: ANN401 (a word, or any value of a file)
        """Record the value of a key, and reject it if it is invalid."""
        key = ".".join(names)
        for place in CLASSES:
            if key == place:
                return self._take_class(place, value)
            if key.startswith(f"{place}."):
                return self._take_option(place, key.removeprefix(f"{place}.").removeprefix("init_args."), value)
        if not self.known or any("." in name for name in names) or "class_path" in (*names, *_keys(value)):
            return None
        options: Any = self.options
        for depth, name in enumerate(names):
            if name not in options:
                raise CxlpError(unknown_key("", _first_leaf(key, value), self.known))
            options = options[name]
            if not isinstance(options, dict):
                if depth == len(names) - 1:
                    self.values[key] = value
                    self._check_value(key, "", options, value)
                return None
        if isinstance(value, dict):
            for name, part in value.items():
                self.take([*names, str(name)], part)
        return None

    def _take_class(self, place: str, value: Any) -> None:  # noqa: ANN401 (a word, or any value of a file)
        if isinstance(value, str):
            self._choose(place, value)
        elif not isinstance(value, dict):
            self.classes[place] = None
        elif value.keys() <= {"class_path", "init_args"}:
            if "class_path" in value:
                self._choose(place, value["class_path"])
            self._take_options(place, value.get("init_args"))
        elif not value.keys() & {"class_path", "init_args", "dict_kwargs"}:
            self._take_options(place, value)

    def _choose(self, place: str, path: Any) -> None:  # noqa: ANN401 (a word, or any value of a file)
        """Accept the options of a class from now on."""
        named = {valid.rpartition(".")[2]: valid for valid in CLASSES[place]}
        known = isinstance(path, str) and (path in named or path.startswith("cxlp."))
        self.has_own_classes |= isinstance(path, str) and "." in path and not known
        self.classes[place] = named.get(path.rpartition(".")[2]) if known else None
        is_word = isinstance(path, str) and path.isidentifier() and path not in ("null", "None")
        if is_word and not (known or self.has_own_classes or path in _imported(place) or Path(path).exists()):
            raise CxlpError(no_class(place, path, CLASSES[place]))

    def _take_options(self, place: str, given: Any, prefix: str = "") -> None:  # noqa: ANN401 (any value of a file)
        for name, value in given.items() if isinstance(given, dict) else ():
            self._take_option(place, f"{prefix}{name}", value)

    def _take_option(self, place: str, name: str, value: Any) -> None:  # noqa: ANN401 (a word, or any value)
        if name == "class_path":
            return self._choose(place, value)
        if name in ("init_args", "dict_kwargs"):
            value = load_yaml(value) if isinstance(value, str) else value
            return self._take_options(place, value) if name == "init_args" else None
        self.values[f"{place}.{name}"] = value  # for an unknown class as well: a later class may inherit it
        path = self.classes[place]
        options: Any = path and options_of(path)
        if path is None or options is None:
            return None
        for part in name.split("."):
            if not isinstance(options, dict):
                return None
            if part not in options:
                raise CxlpError(unknown_option(place, path, _first_leaf(name, value), CLASSES[place]))
            options = options[part]
        if isinstance(options, dict):
            return self._take_options(place, value, f"{name}.")
        self._check_value(name, f"{place}.", options, value)
        return None

    def _check_value(self, key: str, prefix: str, kind: Any, value: Any) -> None:  # noqa: ANN401 (a type, a value)
        """Check a value of a plain type with the parser, as the complete parser will do."""
        if kind is None or value is None or type(value) is kind:
            return
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument(f"--{key}", type=kind)
        try:
            parser.parse_args([f"--{key}={value}"]) if isinstance(value, str) else parser.parse_object({key: value})
        except Exception as error:  # argparse and jsonargparse raise different classes
            if said := wrong_value(str(error), prefix, [key]):
                raise CxlpError(said) from error

    def check_files(self) -> None:
        """Reject files and folders that do not exist.

        Raises:
            CxlpError: If one does not exist; names the first one.
        """
        value = {key: given for key, given in self.values.items() if isinstance(given, str) and given != "null"}
        start, refit = value.get("model.start"), value.get("run.refit")
        weights, resumed = value.get("model.backbone.weights"), value.get("ckpt_path")
        if name := value.get("run.name"):
            check_run_name(name)
        self._check_data(value)
        if "seeds" in value:
            return  # finished runs of the series need no files
        if weights not in (None, "default"):
            find_weights(weights)
        if resumed is not None:
            resumed_checkpoint(Path(resumed), value.get("run.root", "runs"))
        elif value.get("run.resume") == "auto" or was_restarted():
            return  # a resumed run does not need them either
        elif refit is not None and (said := load_yaml(refit)) is not False:
            if said is not True:  # true cannot be combined with start: the run reports that
                chosen_checkpoint(refit)
        elif start is not None and start not in STARTS:
            start_checkpoint(start)

    def _check_data(self, value: dict[str, str]) -> None:
        """Reject missing data, for the classes whose files can be checked without importing torch."""
        path = self.classes["data"]
        root = value.get("data.root")
        if path == "cxlp.data.folder.Folder":
            check_folder(Path(root or "data/folder"))
        elif path == "cxlp.data.table.Table":
            check_table(Path(value.get("data.table", "data/table.csv")))
        elif path == "cxlp.data.torchvision.Torchvision":
            find_data_set(value.get("data.name", ""))


def _keys(value: Any) -> tuple[str, ...]:  # noqa: ANN401 (any value of a file)
    return tuple(value) if isinstance(value, dict) else ()
