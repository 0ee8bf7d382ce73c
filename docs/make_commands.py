"""The sections of the page on commands: what ``--help`` of each command says."""

import os
import sys
from argparse import ArgumentParser
from unittest.mock import patch

from cxlp.__main__ import COMMANDS
from cxlp.commands.parser import CommandParser
from cxlp.commands.train_help import help_page
from cxlp.runs.arguments import CONFIGS

#: Columns of a usage line and an option's help.
WIDTH = 90


def parsers() -> dict[str, ArgumentParser]:
    """The parser of each command by the command's name, in the order of a working day."""
    commands = CommandParser(prog="cxlp").add_subparsers()
    for command in COMMANDS:
        command.add(commands.add_parser)
    return dict(commands.choices)


def reference() -> str:
    """Write the sections."""
    # As after an installation; argparse asks the environment for the width of the terminal.
    with patch.object(sys, "argv", ["cxlp"]), patch.dict(os.environ, {"COLUMNS": str(WIDTH)}):
        sections = [_section(f"cxlp {name}", parser) for name, parser in parsers().items() if name != "train"]
        train = help_page().replace(str(CONFIGS), "configs/")
    return "".join([f"\n## cxlp train\n\n```text\n{train.rstrip()}\n```\n", *sections])


def _section(title: str, parser: ArgumentParser) -> str:
    said, parser.description = parser.description or "", None  # as text, not as a part of the block
    statuses = said.replace("Exit status:", "\nExit status:")
    return f"\n## {title}\n\n{statuses}\n\n```text\n{parser.format_help().rstrip()}\n```\n"
