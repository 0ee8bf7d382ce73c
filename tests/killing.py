"""Runs of train.py in processes that are killed at a defined moment or after a time.

Importing the packages takes longer than such a run. Therefore one process (``python -m tests.killing``) imports them,
and forks a process for each run, which does the same as ``train.py``.
"""

import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

ROOT = Path(__file__).parents[1]


class Runner:
    """Starts runs, one at a time.

    Args:
        folder: The working directory of the runs.
    """

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.killing"],
            cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.log = folder / "log.txt"
        assert self._answer() == os.getpid()  # the process has imported everything

    def __call__(self, arguments: Sequence[str], moment: str | None = None) -> int:
        """Do a run.

        Args:
            arguments: The arguments of ``train.py``.
            moment: The moment at which it is killed, see :func:`prepare`; ``None`` does not kill it.

        Returns:
            The exit status, -9 if the run was killed.
        """
        assert self._process.stdin is not None
        asked = {"arguments": list(arguments), "moment": moment, "log": str(self.log)}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """End the process that forks."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


#: The signal that ends a run: SIGKILL, which cannot be handled, unless the moment names another signal.
_sent = [signal.SIGKILL]


def die() -> NoReturn:
    """Send the signal to this process and to all processes that it has started."""
    os.killpg(0, _sent[0])
    raise AssertionError


def prepare(moment: str) -> None:
    """Make this process kill itself.

    Args:
        moment: ``stage NAME``: before a stage begins; ``pass NAME BATCH``: within the pass of a stage without
            gradients; ``start EPOCH``: before a gradient epoch, as counted by the Trainer; ``batch EPOCH BATCH``:
            within a gradient epoch; ``save FILE EPOCH``: when half of the checkpoint after an epoch is written;
            ``done NAME``: between a stage's checkpoint and ``stages.json``; ``test``: after the last stage;
            ``after SECONDS``: at any point of training or test. The name of a signal may precede the moment, such as
            ``SIGTERM batch 0 1``.
    """
    import pytorch_lightning as pl
    import torch

    from cxlp.runs import done, stages
    from cxlp.tasks import FineTune, Frozen
    from cxlp.utils.files import write_whole

    os.setpgid(0, 0)
    if moment.startswith("SIG"):
        name, _, moment = moment.partition(" ")
        _sent[0] = signal.Signals[name]
    what, *where = moment.split()
    start, step, observe, save = FineTune.on_train_epoch_start, FineTune.training_step, Frozen.training_step, torch.save
    fit, test, build = pl.Trainer.fit, pl.Trainer.test, stages.Run._build_trainer
    present = [""]
    timers: list[threading.Timer] = []

    def at_stage(run: stages.Run, stage: str, *args: Any, **options: Any) -> pl.Trainer:
        present[0] = stage
        if what == "stage" and [stage] == where:
            die()
        return build(run, stage, *args, **options)

    def at_fit(trainer: pl.Trainer, *args: Any, **options: Any) -> Any:
        if what == "after" and not timers:  # in the first stage
            timers.append(threading.Timer(float(where[0]), die))
            timers[0].daemon = True  # a run that ends sooner does not wait for it
            timers[0].start()
        return fit(trainer, *args, **options)

    def at_start(task: FineTune) -> None:
        if what == "start" and [str(task.current_epoch)] == where:
            die()
        start(task)

    def at_step(task: FineTune, batch: Any, batch_idx: int) -> Any:
        if what == "batch" and [str(task.current_epoch), str(batch_idx)] == where:
            die()
        return step(task, batch, batch_idx)

    def at_pass(task: Frozen, batch: Any, batch_idx: int) -> None:
        if what == "pass" and [present[0], str(batch_idx)] == where:
            die()
        observe(task, batch, batch_idx)

    def at_save(content: Any, file: Any, **options: Any) -> None:
        name = getattr(file, "name", "")
        if what == "save" and f"{where[0]}.ckpt" in str(name) and str(content["epoch"]) == where[1]:
            whole = io.BytesIO()
            save(content, whole)
            file.write(whole.getvalue()[: whole.tell() // 2])
            file.flush()
            die()
        save(content, file, **options)

    def at_write(path: Path, content: str) -> None:
        if what == "done" and path.name == done.STAGES and [present[0]] == where:
            die()
        write_whole(path, content)

    def at_test(trainer: pl.Trainer, *args: Any, **options: Any) -> Any:
        if what == "test":
            die()
        return test(trainer, *args, **options)

    mock.patch.object(stages.Run, "_build_trainer", at_stage).start()
    mock.patch.object(done, "write_whole", at_write).start()
    mock.patch.object(FineTune, "on_train_epoch_start", at_start).start()
    mock.patch.object(FineTune, "training_step", at_step).start()
    mock.patch.object(Frozen, "training_step", at_pass).start()
    mock.patch.object(torch, "save", at_save).start()
    mock.patch.object(pl.Trainer, "fit", at_fit).start()
    mock.patch.object(pl.Trainer, "test", at_test).start()


def serve() -> None:
    """Fork a process for each line of the input, and print how it ended."""
    import cxlp.runs.stages
    import cxlp.studies.seeds  # noqa: F401 (main imports both only when it runs)
    from cxlp.commands.train import main

    print(os.getppid(), flush=True)  # noqa: T201
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            with Path(asked["log"]).open("a") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            if asked["moment"]:
                prepare(asked["moment"])
            sys.argv = ["train.py", *asked["arguments"]]
            status = 1
            try:
                status = main()
            finally:
                sys.stdout.flush()
                os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)  # noqa: T201


if __name__ == "__main__":
    serve()
