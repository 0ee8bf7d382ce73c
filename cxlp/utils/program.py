"""How this process was called, for usage lines and for commands that messages tell the user to give."""

import atexit
import gc
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def program() -> str:
    """``cxlp``, where the process is that command; else ``python -m cxlp``, which works in a checkout, too."""
    return "cxlp" if Path(sys.argv[0]).stem == "cxlp" else "python -m cxlp"


def train_program() -> str:
    """What starts a run: ``python train.py``, where the process is that script, else :func:`program`'s command."""
    return "python train.py" if Path(sys.argv[0]).name == "train.py" else f"{program()} train"


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def was_restarted() -> bool:
    """Whether SLURM or torchrun has started this job before, and starts it again."""
    counts = (os.environ.get(name) for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))
    return any(count not in (None, "", "0") for count in counts)


def print_any_text() -> None:
    """Have letters that a terminal or a file does not know printed as escapes, and not end the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def collecting_no_garbage() -> Iterator[None]:
    """Import large libraries meanwhile: to look for garbage among their objects takes a quarter of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def end_without_collecting() -> None:
    """Have Python look for no garbage when it ends, which takes seconds where torch and Lightning are imported."""
    atexit.unregister(gc.freeze)  # once, also where several programs are called in one process
    atexit.register(gc.freeze)


def forget_ranks_without_number() -> None:
    """Forget what the environment says of ranks where that is no number, which Lightning cannot even be imported with.

    To be called before that.
    """
    for name in (
        "RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "JSM_NAMESPACE_RANK",
        "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID",
    ):  # fmt: skip
        if not os.environ.get(name, "0").isdecimal():
            del os.environ[name]
