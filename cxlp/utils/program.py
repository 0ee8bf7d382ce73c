"""How this process was called, for usage lines and for commands that messages tell the user to give."""

import sys
from pathlib import Path


def program() -> str:
    """``cxlp``, where the process is that command; else ``python -m cxlp``, which works in a checkout, too."""
    return "cxlp" if Path(sys.argv[0]).stem == "cxlp" else "python -m cxlp"


def train_program() -> str:
    """What starts a run: ``python train.py``, where the process is that script, else :func:`program`'s command."""
    return "python train.py" if Path(sys.argv[0]).name == "train.py" else f"{program()} train"
