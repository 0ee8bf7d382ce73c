"""Outputs of a tested run: ``metrics.json``, tables, pictures, report, and wandb summary."""

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rich.console import Console
from rich.table import Table

from cxlp.models.checkpoint import read_checkpoint
from cxlp.reports.history import wandb_command
from cxlp.reports.page import write_report
from cxlp.runs.cost import measure_cost
from cxlp.runs.done import Done
from cxlp.runs.epochs import title
from cxlp.runs.evaluation import wandb_panels
from cxlp.runs.stages import Run
from cxlp.runs.wandb_runs import close_wandb
from cxlp.utils.files import write_whole
from cxlp.utils.profiling import PhaseTimes, peak_memory
from cxlp.utils.progress import duration
from cxlp.utils.spelling import as_text, interval_as_text


class Clock:
    """Measures the duration of a run, by phase and in total.

    Args:
        start: The time at which this process started the run, by :func:`time.perf_counter`.
        times: Seconds by phase of fit and test; initially those of the earlier processes of a resumed run.
        is_resumed: Whether the run is resumed.

    Attributes:
        after: Seconds by phase of the outputs that are written after the test.
    """

    def __init__(self, start: float, times: PhaseTimes, is_resumed: bool) -> None:
        self._start, self._times, self._is_resumed = start, times, is_resumed
        spent, known = PhaseTimes.now() - start, sum(times.values())
        # A new run has measured only the choice of layers, which is part of the time spent so far.
        self._start_up, self._before = (spent, known) if is_resumed else (spent - known, 0.0)
        self.after = PhaseTimes()

    def seconds(self) -> dict[str, float]:
        """Return the seconds measured so far: by phase, the remaining time as ``other``, and the total.

        ``start-up`` covers imports, lists of images, and building the network. For a resumed run, the phases include
        earlier processes, but ``other`` covers this process only, and ``since resumed`` replaces the total.
        """
        phases = {"start-up": self._start_up, **self._times, **self.after}
        whole = PhaseTimes.now() - self._start
        other = max(0.0, whole - (sum(phases.values()) - self._before))
        return {**phases, "other": other, "since resumed" if self._is_resumed else "total": whole}


@dataclass(frozen=True)
class Results:
    """The results of a tested run, on rank 0.

    Attributes:
        run: The run, fitted and tested.
        stage: The stage that was tested.
        tested: The test's metrics.
        clock: Measures the seconds by phase.
    """

    run: Run
    stage: Done
    tested: Mapping[str, float]
    clock: Clock

    @property
    def checkpoint(self) -> str:
        """Path of the tested checkpoint; empty if the final weights were tested."""
        return str(self.run.folder / self.stage.checkpoint) if self.stage.checkpoint else ""

    @cached_property  # a checkpoint of many classes is large
    def _report(self) -> dict[str, float]:
        """Hyperparameters and scores of the frozen fit of the tested checkpoint."""
        report = read_checkpoint(self.checkpoint)["cxlp"]["report"] if self.checkpoint else {}
        return report or self.run.report

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the tested checkpoint: its test, its validation, and the values of its frozen fit."""
        found = {f"frozen/{k}": v for k, v in self._report.items() if k != "primal"}
        return {**self.tested, **self.stage.validated, **found}

    @property
    def solver(self) -> str:
        """The solver of the SVMs, ``kernel`` or ``primal``; empty if there was no frozen fit."""
        return ("primal" if self._report["primal"] else "kernel") if "primal" in self._report else ""

    @property
    def images(self) -> dict[str, int]:
        """Number of images, by split."""
        return {str(name): len(split) for name, split in self.run.data.splits.items()}

    @property
    def images_per_second(self) -> dict[str, float]:
        """Images per second, by phase, without images whose stored features skip the backbone."""
        images = {**self.run.progress.phases, "test": self.images["test"]}
        return {phase: images[phase] / spent for phase, spent in self.run.times.items() if images.get(phase) and spent}

    def write(self) -> int:
        """Write ``metrics.json``, then the outputs that may fail: tables, pictures, report, wandb run.

        The key ``outputs`` of ``metrics.json`` is written last and marks the run as finished.

        Returns:
            The exit status: 0, or 3 if an output could not be written; stderr names that output.
        """
        run, outputs = self.run, self.run.outputs
        summary = self._summary()
        self._save(summary)
        if run.settings.cost:
            with outputs.attempt("the cost"), self.clock.after.measure("cost"):
                summary["cost"] = self._cost()
        with self.clock.after.measure("tables and pictures"):
            tables = {} if run.tested is None else run.tested.write(run.folder, outputs)
        summary["seconds"] = self.clock.seconds()
        with outputs.attempt("report.html"), self.clock.after.measure("report"):
            self._save(summary)  # the report reads the file
            write_report(run.folder)
        summary["seconds"] = self.clock.seconds()
        with outputs.attempt("the table on standard output"):
            try:
                self.show(summary["seconds"], summary.get("intervals", {}))
            except SystemExit as error:  # rich exits if stdout is a closed pipe, as with `head`
                raise BrokenPipeError("the pipe is closed") from error
        if run.experiment is not None:  # last, since wandb waits if the network is down
            with outputs.attempt("the panels in wandb"):
                run.experiment.log(wandb_panels(run.folder, tables))
            with outputs.attempt("the end of the wandb run"):
                close_wandb(run.experiment, summary, (self.checkpoint or None) if run.settings.log_model else None)
        with outputs.attempt("the end of metrics.json"):
            self._save({**summary, "outputs": {"failed": outputs.failed}})
        if outputs.failed:
            said = f"The result is in {run.folder / 'metrics.json'}; not written: {', '.join(outputs.failed)}"
            print(said, file=sys.stderr)  # noqa: T201
        return 3 if outputs.failed else 0

    def _save(self, summary: Mapping[str, Any]) -> None:
        text = json.dumps(finite(summary), indent=2, allow_nan=False)
        write_whole(self.run.folder / "metrics.json", text + "\n")

    def _summary(self) -> dict[str, Any]:
        run = self.run
        summary: dict[str, Any] = {
            "metrics": finite(self.metrics),
            "seconds": self.clock.seconds(),
            "tested": self.stage.checkpoint if self.checkpoint else "final weights",
            "epoch": self.stage.epoch,
            "images": self.images,
        }
        if self.solver:
            summary["solver"] = self.solver
        if run.tested is not None:
            with run.outputs.attempt("the confidence intervals"):
                summary["intervals"] = {name: found._asdict() for name, found in run.tested.intervals().items()}
        if run.data.left_out:
            summary["left_out"] = dict(run.data.left_out)
        if run.choice is not None:
            summary["refit"] = {
                "chosen by": run.choice.checkpoint,
                "epoch": run.choice.epoch,
                "validated": run.choice.validated,
            }
        if run.reuse is not None and run.reuse.taken_up:
            with run.outputs.attempt("the description of the stored features"):
                summary["features made by an earlier run"] = run.reuse.entry.facts()
        if run.reuse is not None:
            summary["features"] = run.reuse.files
        if any(head.needs_labels for head in run.network.each_head()):
            summary["heads learnt from labels"] = (
                True  # cross-validated scores are optimistic: the heads saw all labels
            )
        summary["memory"] = peak_memory()
        summary["images_per_second"] = self.images_per_second
        return summary

    def _cost(self) -> dict[str, float]:
        run = self.run
        run.network.to(run.trainer.strategy.root_device)  # Lightning has moved it to the CPU
        with run.trainer.precision_plugin.forward_context():
            return measure_cost(run.network, run.data.splits["test"], run.model.frozen.features)

    def show(self, seconds: Mapping[str, float], intervals: Mapping[str, Mapping[str, Any]]) -> None:
        """Print the table of metrics, and the paths of the outputs."""
        run, folder = self.run, self.run.folder
        table = metrics_table(
            f"{run.data.name}: {', '.join(f'{n} {k}' for k, n in self.images.items())} images", self.metrics, intervals
        )
        if run.choice is not None:
            table.add_section()
            table.add_row("refit: chosen", title(run.choice.stage, run.choice.epoch))
            for key, value in run.choice.validated.items():
                table.add_row(f"chosen by: {key}", as_text(key, value))
        table.add_section()
        if self.solver:
            table.add_row("solver of the frozen fit", self.solver)
        if len(run.done) > 1:
            name = next(name for name, stage in run.done.items() if stage == self.stage)
            table.add_row("tested", title(name, self.stage.epoch))
        console = Console(markup=False, highlight=False)  # names may contain [b], which is not markup
        console.print(table)
        *phases, (whole, spent) = ((phase, duration(spent)) for phase, spent in seconds.items() if spent >= 0.05)
        parts = ", ".join(f"{phase} {spent}" for phase, spent in phases)
        # The phases of a resumed run include those of earlier processes.
        link = "by phase, with earlier processes:" if whole == "since resumed" else "of which"
        said = f"Time: {spent} {whole}, {link} {parts}"
        console.print(said, soft_wrap=True)
        console.print(f"Everything is in {folder} (tested: {self.checkpoint or 'the final weights'})", soft_wrap=True)
        console.print(f"Look at it in a browser: {folder / 'report.html'}", soft_wrap=True)
        look = wandb_command(folder)
        if look:
            console.print(f"Look at the curves: {look}", soft_wrap=True)


def metrics_table(title: str, metrics: Mapping[str, float], intervals: Mapping[str, Mapping[str, Any]]) -> Table:
    """Build a table of metrics, with the confidence intervals of those that have one."""
    table = Table("result", title=title)
    table.add_column("value", justify="right")
    if intervals:
        table.add_column("95% interval")
    for key, value in metrics.items():
        cells = [interval_as_text(key, intervals[key]) if key in intervals else ""] if intervals else []
        table.add_row(key, as_text(key, value), *cells)
    return table


def finite(value: Any) -> Any:  # noqa: ANN401 (plain values, nested)
    """Replace numbers that are not finite by ``None``, since JSON cannot represent them."""
    if isinstance(value, Mapping):
        return {key: finite(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
