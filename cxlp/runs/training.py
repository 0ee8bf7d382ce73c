"""A run from its arguments to its results, as the command line does it; and the same from Python."""

import gc
import time
from collections.abc import Sequence

from jsonargparse import Namespace

from cxlp.runs.choosing import choose_epoch
from cxlp.runs.cli import parse
from cxlp.runs.endings import Begun
from cxlp.runs.launch import launched_rank, settle_launch
from cxlp.runs.results import Clock, Results
from cxlp.runs.stages import Run
from cxlp.utils.processes import leave_with_parent


def train_and_test(arguments: Sequence[str], config: Namespace, begun: Begun) -> int:
    """Do the stages of a run, test the best of them, and write down what came out.

    Args:
        arguments: Those of ``train.py``, of which a refit makes its own.
        config: What they say, see :func:`~cxlp.runs.cli.parse`.
        begun: Is told the run.

    Returns:
        The exit status: 0; 3 if an output beside the result could not be made, which stderr names.
    """
    settle_launch(config["trainer"])
    begun.speaks = not leave_with_parent() and launched_rank() == 0
    run = begun.run = Run(config)
    if run.settings.refit is True:
        arguments = choose_epoch(run, arguments)
        begun.start = time.perf_counter()
        run = begun.run = Run(parse(arguments))
        gc.collect()  # the first run's loaders, with their processes
    clock = Clock(begun.start, run.times, run.resumed is not None)
    stage = run.fit()
    tested = run.test(stage)
    return Results(run, stage, tested, clock).write() if run.trainer.is_global_zero else 0
