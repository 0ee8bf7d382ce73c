"""How a run ends before its end: what its user is told, and how its other processes learn of it."""

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

#: What collectives raise where a peer has ended: gloo's words, and NCCL's.
_PEER_GONE = (
    "Connection (closed by|reset by) peer|Socket closed|Broken pipe|remote process exited|communicator was aborted"
)


@dataclass
class Begun:
    """What has begun, and when: a run, or a series of runs in a folder; and whether this process tells how to go on."""

    start: float = field(default_factory=time.perf_counter)

    run: "Run | None" = None
    series: Path | None = None
    speaks: bool = field(default_factory=lambda: not is_waited_for())


def mendable(error: BaseException | None) -> str | None:
    """What to tell the user of an exception that they can mend; ``None`` for one that we have to."""
    while error is not None:  # the parser wraps what constructors raise
        if isinstance(error, CxlpError):
            # From a loader's worker, the message carries the worker's traceback.
            return str(error).rpartition("CxlpError: ")[2].strip()
        # Not above: what is told early is told without torch.
        from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]

        from cxlp.utils.distributed import is_distributed

        # Lightning's EarlyStopping raises a bare RuntimeError for a metric that is not logged.
        if isinstance(error, MisconfigurationException) or str(error).startswith("Early stopping conditioned on"):
            return " ".join(str(error).split())
        if is_distributed() and re.search(_PEER_GONE, str(error)):
            return STOPPED
        error = error.__cause__
    return None


def let_peers_know(status: int) -> None:
    """Be gone soon, among several processes: even Python's end may wait for the others."""
    if "torch" not in sys.modules:  # there is no process group yet
        return
    from cxlp.utils.distributed import is_distributed

    if is_distributed():
        leave_soon(status)


def folder_to_go_on(run: "Run | None") -> Path | None:
    """The folder of a stopped run that can be gone on with; ``None``: nothing was saved yet."""
    if run is None:
        return None
    folder = run.folder
    if run.choice is not None and last_checkpoint(folder) is None:
        folder = Path(run.choice.checkpoint).parent.parent  # of the run that has chosen, which refits anew
    return None if last_checkpoint(folder) is None else folder
