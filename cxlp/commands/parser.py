"""The parser of commands: what is misspelt is told in one line, with what is meant."""

import re
from argparse import Action, ArgumentParser
from collections.abc import Sequence
from typing import Any, NoReturn

from cxlp.utils.errors import did_you_mean, nearest

_CHOICE = re.compile(r"argument (?P<option>.+?): invalid choice: '?(?P<given>.*?)'? \((maybe you meant|choose from) ")


class CommandParser(ArgumentParser):
    """A parser that suggests the nearest command, option or value, and lists the valid ones once.

    Attributes:
        options: Its own, such as ``--out``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.options: list[str] = []
        self._valid: dict[str, Sequence[str]] = {}
        self._groups: dict[str, Any] = {}
        super().__init__(*args, **kwargs)

    def add_argument(self, *names: Any, group: str | None = None, **kwargs: Any) -> Action:
        """Add an argument, perhaps to a group of the help's, and note its name and values."""
        self.options += [name for name in names if name.startswith("--")]
        for name in (*names, "/".join(names), kwargs.get("metavar")):
            if kwargs.get("choices"):
                self._valid[str(name)] = [*kwargs["choices"]]
        if group is None:
            return super().add_argument(*names, **kwargs)
        if group not in self._groups:
            self._groups[group] = self.add_argument_group(group)
        action: Action = self._groups[group].add_argument(*names, **kwargs)
        return action

    def commands(self, known: Sequence[str]) -> None:
        """Note the commands that there are."""
        self._valid["COMMAND"] = known

    def unknown_option(self, given: str) -> NoReturn:
        """End with a sentence about an option that there is not."""
        name = given.partition("=")[0]
        if not name.startswith("--"):
            self.exit(2, f"error: {name!r} is one argument too many: see {self.prog} --help\n")
        self.exit(2, f"error: there is no option {name}. {did_you_mean(name, self.options)}\n")

    def suggest(self, given: Sequence[str], keys: Sequence[str]) -> None:
        """End where an argument is no key of train.py, and is spelled like an option of this command."""
        for arg in given:
            name = arg.partition("=")[0]
            if name.startswith("--") and "." not in name and name[2:] not in keys:
                near = nearest(name, [*self.options, *(f"--{key}" for key in keys)])
                if near in self.options:
                    self.unknown_option(arg)

    def error(self, message: str) -> NoReturn:
        """End with what is wrong, and the usage where that says more."""
        wrong = _CHOICE.match(message)
        if wrong is None or wrong["option"] not in self._valid:
            super().error(message)
        what = f"{wrong['option']} is {wrong['given']!r}"
        if wrong["option"] == "COMMAND":
            what = f"there is no command {wrong['given']!r}"
        self.exit(2, f"error: {what}. {did_you_mean(wrong['given'], self._valid[wrong['option']])}\n")
