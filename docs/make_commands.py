"""Generates the sections of the page on commands, from the ``--help`` text of each command."""

import os
import sys
from argparse import ArgumentParser
from unittest.mock import patch

from cxlp.__main__ import COMMANDS
from cxlp.commands.parser import CommandParser
from cxlp.commands.train_help import help_page
from cxlp.runs.arguments import CONFIGS

#: Width of the help text, characters.
WIDTH = 90


def parsers() -> dict[str, ArgumentParser]:
    """Return the parser of each command by the command's name, in the order of the program's help."""
    commands = CommandParser(prog="cxlp").add_subparsers()
    for command in COMMANDS:
        command.add(commands.add_parser)
    return dict(commands.choices)


def reference() -> str:
    """Return the sections."""
    # The program's name is that of an installed package. argparse reads the terminal's width from COLUMNS.
    with patch.object(sys, "argv", ["cxlp"]), patch.dict(os.environ, {"COLUMNS": str(WIDTH)}):
        sections = [_section(f"cxlp {name}", parser) for name, parser in parsers().items() if name != "train"]
        train = help_page().replace(str(CONFIGS), "configs/")
    return "".join([f"\n## cxlp train\n\n```text\n{train.rstrip()}\n```\n", *sections])


def _section(title: str, parser: ArgumentParser) -> str:
    said, parser.description = parser.description or "", None  # shown as text above the block
    statuses = said.replace("Exit status:", "\nExit status:")
    return f"\n## {title}\n\n{statuses}\n\n```text\n{parser.format_help().rstrip()}\n```\n"
