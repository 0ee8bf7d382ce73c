"""How this process was started, and settings of the interpreter."""

import atexit
import gc
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def program() -> str:
    """Return the command's name for messages: ``cxlp`` or, in a checkout, ``python -m cxlp``."""
    return "cxlp" if Path(sys.argv[0]).stem == "cxlp" else "python -m cxlp"


def train_program() -> str:
    """Return the command that starts a run: ``python train.py`` or :func:`program` with ``train``."""
    return "python train.py" if Path(sys.argv[0]).name == "train.py" else f"{program()} train"


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def was_restarted() -> bool:
    """Return whether SLURM or torchrun has restarted this job."""
    counts = (os.environ.get(name) for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))
    return any(count not in (None, "", "0") for count in counts)


def escape_unprintable_text() -> None:
    """Print characters that the output's encoding does not support as escapes, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Context without garbage collection, which would take a quarter of the time of large imports."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def skip_collection_at_exit() -> None:
    """Skip garbage collection at exit, which takes seconds after torch and Lightning were imported."""
    atexit.unregister(gc.freeze)  # register only once, also if several commands run in one process
    atexit.register(gc.freeze)


def unset_invalid_ranks() -> None:
    """Delete environment variables of ranks whose values are not numbers.

    Importing Lightning fails with such values. Must be called before Lightning is imported.
    """
    for name in (
        "RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "JSM_NAMESPACE_RANK",
        "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID",
    ):  # fmt: skip
        if not os.environ.get(name, "0").isdecimal():
            del os.environ[name]
