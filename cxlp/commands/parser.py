"""The argument parser of the commands. It reports a misspelling in one line and suggests the right spelling."""

import re
from argparse import Action, ArgumentParser
from collections.abc import Sequence
from typing import Any, NoReturn

from cxlp.utils.errors import did_you_mean, nearest

_CHOICE = re.compile(r"argument (?P<option>.+?): invalid choice: '?(?P<given>.*?)'? \((maybe you meant|choose from) ")


class CommandParser(ArgumentParser):
    """A parser whose errors suggest the nearest command, option or value, and list the valid ones once.

    Attributes:
        options: The long options of this command, such as ``--out``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.options: list[str] = []
        self._valid: dict[str, Sequence[str]] = {}
        self._groups: dict[str, Any] = {}
        super().__init__(*args, **kwargs)

    def add_argument(self, *names: Any, group: str | None = None, **kwargs: Any) -> Action:
        """Add an argument, to a group of the help page if one is named, and record its name and choices."""
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
        """Record the names of all commands."""
        self._valid["COMMAND"] = known

    def unknown_option(self, given: str) -> NoReturn:
        """Exit with an error message about an unknown option or a superfluous argument."""
        name = given.partition("=")[0]
        if not name.startswith("--"):
            self.exit(2, f"error: unexpected argument {name!r}: see {self.prog} --help\n")
        self.exit(2, f"error: there is no option {name}. {did_you_mean(name, self.options)}\n")

    def suggest(self, given: Sequence[str], keys: Sequence[str]) -> None:
        """Exit with an error message if an argument is not a key of train.py but resembles a command's own option."""
        for arg in given:
            name = arg.partition("=")[0]
            if name.startswith("--") and "." not in name and name[2:] not in keys:
                near = nearest(name, [*self.options, *(f"--{key}" for key in keys)])
                if near in self.options:
                    self.unknown_option(arg)

    def error(self, message: str) -> NoReturn:
        """Exit with an error message: one line for an invalid choice, else argparse's own with the usage."""
        wrong = _CHOICE.match(message)
        if wrong is None or wrong["option"] not in self._valid:
            super().error(message)
        what = f"{wrong['option']} is {wrong['given']!r}"
        if wrong["option"] == "COMMAND":
            what = f"there is no command {wrong['given']!r}"
        self.exit(2, f"error: {what}. {did_you_mean(wrong['given'], self._valid[wrong['option']])}\n")
