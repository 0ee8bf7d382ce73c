"""Handling of failed and interrupted runs: message to the user, and end of the other processes."""

import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cxlp.runs.places import last_checkpoint
from cxlp.utils.errors import CxlpError
from cxlp.utils.processes import STOPPED, is_waited_for, leave_soon

if TYPE_CHECKING:
    from cxlp.runs.stages import Run

#: Messages of collectives after another process has ended, from gloo and NCCL.
_PEER_GONE = (
    "Connection (closed by|reset by) peer|Socket closed|Broken pipe|remote process exited|communicator was aborted"
)


@dataclass
class Begun:
    """The run or series in progress, its start time, and whether this process prints how to resume it."""

    start: float = field(default_factory=time.perf_counter)

    run: "Run | None" = None
    series: Path | None = None
    speaks: bool = field(default_factory=lambda: not is_waited_for())


def user_message(error: BaseException | None) -> str | None:
    """The message to the user for an error that they can correct; ``None`` for any other error."""
    while error is not None:  # the parser wraps exceptions of constructors
        if isinstance(error, CxlpError):
            # An error of a DataLoader's worker contains the worker's traceback: keep the message only.
            return str(error).rpartition("CxlpError: ")[2].strip()
        # Imported here, since early errors are reported without importing torch.
        from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]

        from cxlp.utils.distributed import is_distributed

        # Lightning's EarlyStopping raises a RuntimeError for a metric that is not logged.
        if isinstance(error, MisconfigurationException) or str(error).startswith("Early stopping conditioned on"):
            return " ".join(str(error).split())
        if is_distributed() and re.search(_PEER_GONE, str(error)):
            return STOPPED
        error = error.__cause__
    return None


def end_if_distributed(status: int) -> None:
    """End this process soon if it is one of several: a normal exit of Python may wait for the others."""
    if "torch" not in sys.modules:  # there is no process group yet
        return
    from cxlp.utils.distributed import is_distributed

    if is_distributed():
        leave_soon(status)


def resumable_folder(run: "Run | None") -> Path | None:
    """The folder from which a stopped run can be resumed; ``None`` if nothing was saved yet."""
    if run is None:
        return None
    folder = run.folder
    if run.choice is not None and last_checkpoint(folder) is None:
        folder = Path(run.choice.checkpoint).parent.parent  # the first run, which starts the refit again
    return None if last_checkpoint(folder) is None else folder
