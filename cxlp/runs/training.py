"""A complete run, from its arguments to its results, for the command line and for Python."""

import gc
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from jsonargparse import Namespace

from cxlp.runs.arguments import find_configs
from cxlp.runs.choosing import choose_epoch
from cxlp.runs.cli import parse
from cxlp.runs.early import check_early
from cxlp.runs.endings import Begun, end_if_distributed, resumable_folder, user_message
from cxlp.runs.launch import launched_rank, settle_launch
from cxlp.runs.overrides import Config, as_arguments
from cxlp.runs.results import Clock, Results
from cxlp.runs.run_result import RunResult
from cxlp.runs.stages import Run
from cxlp.utils.distributed import barrier
from cxlp.utils.errors import CxlpError
from cxlp.utils.locking import release_all_locks
from cxlp.utils.main_script import IMPORTED_AGAIN, check_not_imported_again, imported_script
from cxlp.utils.processes import exit_status_of, keeping_handlers, leave_with_parent
from cxlp.utils.transcript import recording


def train_and_test(arguments: Sequence[str], config: Namespace, begun: Begun) -> int:
    """Run all stages, test the best checkpoint, and write the results.

    Args:
        arguments: Arguments of ``train.py``; a refit derives its own from them.
        config: The parsed arguments, see :func:`~cxlp.runs.cli.parse`.
        begun: Receives the run as soon as it exists.

    Returns:
        The exit status: 0, or 3 if an optional output could not be written; stderr names that output.
    """
    settle_launch(config["trainer"])
    begun.speaks = not leave_with_parent() and launched_rank() == 0
    run = begun.run = Run(config)
    if run.settings.refit is True:
        arguments = choose_epoch(run, arguments)
        begun.start = time.perf_counter()
        run = begun.run = Run(parse(arguments))
        gc.collect()  # frees the first run's loaders and their processes
    clock = Clock(begun.start, run.times, run.resumed is not None)
    stage = run.fit()
    tested = run.test(stage)
    return Results(run, stage, tested, clock).write() if run.trainer.is_global_zero else 0


def train(config: Config | Sequence[Config] = (), overrides: Mapping[str, Any] | None = None) -> RunResult:
    """Train and test a network, as ``cxlp train`` does, with the same configs and keys.

    The function prints what the command prints, writes the same folder, and seeds the global random number generators
    (``seed_everything``). If several processes share the run, as with ``trainer.strategy: ddp`` in a script, each of
    them returns and continues with the script.

    Args:
        config: Name or path of a config, or a list of them in which later ones override earlier ones. Names refer to
            files in the working directory or to the shipped configs.
        overrides: Values by key, dotted or nested: ``{"data.root": "photos", "model": {"frozen": {"c": 1.0}}}``. The
            value of a class key may be a class, or a head such as ``cxlp.BilinearPooling()``; ``data.table`` may be a
            DataFrame.

    Returns:
        The results of the run.

    Raises:
        CxlpError: If the user can correct the problem; the command prints the same message.
        KeyboardInterrupt: After Ctrl-C, also where Lightning turns it into an exit; the message says how to resume.

    Example::

        result = cxlp.train("demo.yaml", {"model.head.pca_dim": 128})
        print(result.metrics["test/accuracy"], result.model.predict("bird.jpg"))
    """
    check_not_imported_again()
    arguments = as_arguments(config, overrides or {})
    begun, parsed, outer = Begun(), None, sys.exception()
    with recording(), keeping_handlers():
        try:
            check_early(arguments)
            arguments = find_configs(arguments)
            parsed = parse(arguments)
            if parsed["seeds"] is not None:
                raise CxlpError(
                    "seeds works on the command line only, where each run has its own process: call train once per "
                    "value of seed_everything"
                )
            train_and_test(arguments, parsed, begun)
        except BaseException as error:
            if begun.run is not None:
                begun.run.discard()
                begun.run.end_wandb()
            if (ended := exit_status_of(error, outer)) is not None:
                end_if_distributed(ended[0])
                folder = resumable_folder(begun.run)
                more = (
                    f'; resume with cxlp.train("{folder}/config.yaml", {{"ckpt_path": "{folder}"}})' if folder else ""
                )
                raise KeyboardInterrupt(f"{ended[1]}{more}") from error
            if not isinstance(error, Exception):
                raise
            if parsed is not None:  # otherwise this call has no peers yet, even if an earlier one had
                end_if_distributed(1)
            said = IMPORTED_AGAIN if imported_script(error) else user_message(error)
            if said is None or (isinstance(error, CxlpError) and str(error) == said):
                raise
            raise CxlpError(said) from error
        finally:
            release_all_locks()
    assert begun.run is not None
    barrier()  # rank 0 writes the files that the others read
    return RunResult(begun.run.folder)
