"""The command line: configs in, one run folder out."""

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from jsonargparse import Namespace
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar, TQDMProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import WandbLogger
from rich.console import Console
from rich.table import Table

from cxlp.callbacks import RunIdentity, TestReport, checkpoints, write_whole
from cxlp.data.base import ImageDataModule
from cxlp.errors import CxlpError, did_you_mean
from cxlp.explain import explain
from cxlp.logging import RunConfig, build_loggers, how_to_look
from cxlp.tasks.base import CrossLayerTask

CONFIGS = Path(__file__).parent.parent / "configs"
#: What may stand at ``class_path``, besides a user's own subclasses.
CLASSES = {
    "model": ("cxlp.tasks.Frozen", "cxlp.tasks.FineTune"),
    "data": ("cxlp.data.cub200.CUB200", "cxlp.data.demo.Demo", "cxlp.data.folder.Folder"),
}


def main(args: Sequence[str] | None = None) -> int:
    """Run ``train.py``.

    Args:
        args: Arguments; ``None``: those of the process.

    Returns:
        The exit status: 0, or 2 where the user can mend something.
    """
    _quiet()
    try:
        arguments = find_configs(sys.argv[1:] if args is None else args)
        if args is None:
            sys.argv[1:] = arguments  # what the processes of further ranks are started with
        train_and_test(CLI(nested_as_configs(arguments)))
    except Exception as error:
        cause = _mendable(error)
        if cause is None:
            raise
        # From a loader's worker, the message carries the worker's traceback.
        print(f"error: {str(cause).rpartition('CxlpError: ')[2].strip()}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


class CLI(LightningCLI):
    """LightningCLI without subcommands: parses, makes the run's folder, and builds everything."""

    run_folder: Path

    def __init__(self, args: Sequence[str]) -> None:
        super().__init__(
            CrossLayerTask,
            ImageDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            run=False,
            save_config_callback=None,  # saved in the run's own folder instead, see after_instantiate_classes
            load_from_checkpoint_support=False,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            # No sanity check: it scores an unfitted network on a few images of a few classes.
            trainer_defaults={"num_sanity_val_steps": 0, "log_every_n_steps": 10, "enable_model_summary": False},
            parser_kwargs={
                "description": "Train and test cross-convolutional-layer pooling.",
                "allow_abbrev": False,  # a misspelt key must not pass for another
            },
            args=list(args),
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what belongs to a run rather than to the model, the data or the Trainer."""
        parser.add_class_arguments(RunConfig, "run")
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="Checkpoint of a run to resume.")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:  # noqa: ANN401 (Lightning's type)
        """Parse, and name the valid keys where one is unknown."""
        parser.exit_on_error = False
        try:
            self.config: Namespace = parser.parse_args(args)
        except Exception as error:  # argparse, jsonargparse and yaml each raise their own
            raise CxlpError(explain(parser, error, CLASSES)) from error

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Make the run's folder, and a Trainer that writes there."""
        run: RunConfig = (
            self.config_init["run"]
            if isinstance(self.config_init["run"], RunConfig)
            else RunConfig(**self.config_init["run"].as_dict())
        )
        resumed = self.config["ckpt_path"]
        self.run_folder, wandb_id = _resume(Path(resumed), run) if resumed else (_new_folder(run, self.config), None)
        trainer = self.config_init["trainer"]
        if trainer["logger"] in (None, True):
            kwargs["logger"] = build_loggers(run, self.run_folder, wandb_id, _rank())
        given = trainer["callbacks"] or []
        callbacks: list[pl.Callback] = [TestReport(self.run_folder), RunIdentity()]
        if not any(isinstance(c, ModelCheckpoint) for c in given) and trainer["enable_checkpointing"] is not False:
            monitor = "val/accuracy" if self.datamodule.val_fraction > 0 else None
            callbacks.extend(checkpoints(self.run_folder / "checkpoints", monitor))
        if not any(isinstance(c, ProgressBar) for c in given) and trainer["enable_progress_bar"] is not False:
            callbacks.append(TQDMProgressBar())  # as the fit's own bars: a live display would clash with them
        if self.model.automatic_optimization and trainer["logger"] is not False:
            callbacks.append(LearningRateMonitor("step"))
        kwargs |= {"callbacks": [*given, *callbacks], "default_root_dir": str(self.run_folder)}
        return super().instantiate_trainer(**kwargs)

    def after_instantiate_classes(self) -> None:
        """Save the whole resolved config in the run's folder and in wandb."""
        self._save_config()

    def _save_config(self) -> None:
        if _rank() != 0:
            return
        text = self.parser.dump(self.config, skip_none=False)
        write_whole(self.run_folder / "config.yaml", text)
        for logger in self.trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.config.update(self.config.as_dict(), allow_val_change=True)


def train_and_test(cli: CLI) -> None:
    """Fit, test the right checkpoint, and write down what came out.

    The right checkpoint is the best on the validation images where there are any, else the last.
    """
    start = time.perf_counter()
    task, data, trainer = cli.model, cli.datamodule, cli.trainer
    trainer.fit(task, data, ckpt_path=cli.config["ckpt_path"], weights_only=True if cli.config["ckpt_path"] else None)
    checkpoint = trainer.checkpoint_callback
    best = checkpoint.best_model_path if isinstance(checkpoint, ModelCheckpoint) else ""
    validated = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
    results = trainer.test(task, data, ckpt_path=best or None, weights_only=True if best else None, verbose=False)
    if trainer.is_global_zero:
        metrics = {**results[0], **validated, **{f"frozen/{k}": v for k, v in task.report.items()}}
        if isinstance(checkpoint, ModelCheckpoint) and checkpoint.best_model_score is not None:
            metrics["val/best_accuracy"] = float(checkpoint.best_model_score)
        times = {**task.times, "total": time.perf_counter() - start}
        summary = {"metrics": metrics, "seconds": times, "tested": best or "final weights", "images": _counts(data)}
        write_whole(cli.run_folder / "metrics.json", json.dumps(summary, indent=2) + "\n")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.summary.update({f"seconds/{k}": v for k, v in times.items()})
                logger.experiment.finish()
        _closing_table(cli, metrics, times, best)


def find_configs(args: Sequence[str]) -> list[str]:
    """Replace each ``--config NAME`` by the path of that file, here or in ``configs/``.

    Raises:
        CxlpError: If there is none; names those there are.
    """
    found = list(args)
    for i, arg in enumerate(found):
        if arg in ("--config", "-c") and i + 1 < len(found):
            found[i + 1] = str(_config_path(found[i + 1]))
        elif arg.startswith("--config="):
            found[i] = f"--config={_config_path(arg.removeprefix('--config='))}"
    return found


def nested_as_configs(args: Sequence[str]) -> list[str]:
    """Turn ``--model.a.b V`` and ``--data.a V`` into configs of one key, which are parsed more strictly.

    As arguments below a class, the parser would take ``null`` for a string and ``--model.network.pooling.pca``
    for an abbreviation of ``pca_dim``.
    """
    passed: list[str] = []
    rest = list(args)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        top, _, path = name.removeprefix("--").partition(".")
        is_nested = name.startswith("--") and top in CLASSES and path.split(".")[-1] not in ("", "class_path", "help")
        if not is_nested or not (equals or rest):
            passed.append(name + equals + value)
            continue
        value = value if equals else rest.pop(0)
        nested: Any = None if value in ("null", "~") else value
        for key in reversed(["init_args", *path.removeprefix("init_args.").split(".")]):
            nested = {key: nested}
        passed += ["--config", json.dumps({top: nested})]
    return passed


def _config_path(name: str) -> Path:
    candidates = [Path(name), Path("configs") / name, CONFIGS / name]
    for path in candidates:
        for spelled in (path, path.with_name(path.name + ".yaml")):
            if spelled.is_file():
                return spelled.absolute()
    shipped = sorted(p.name for p in CONFIGS.glob("*.yaml"))
    raise CxlpError(f"config file not found: {name} (nor in {CONFIGS}). {did_you_mean(name, shipped, shown=12)}")


def _new_folder(run: RunConfig, config: Namespace) -> Path:
    """Make a new folder for a run; one that another run made in the same moment is left to it."""
    root = Path(run.root)
    if _rank() != 0:
        return root  # rank 0 tells the others its folder when the run begins
    files = [Path(str(c)).stem for c in config.get("config") or [] if c is not None]
    name = run.name or "-".join([*files, datetime.now().strftime("%Y%m%d-%H%M%S")])
    for number in range(1, 10_000):
        folder = root / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        if number > 1:
            print(f"{root / name} holds a run already: this one goes to {folder}")  # noqa: T201
        return folder
    raise CxlpError(f"{root} holds 9,999 runs called {name}; choose another --run.name")


def _resume(checkpoint: Path, run: RunConfig) -> tuple[Path, str | None]:
    """The folder and the wandb id of the run that a checkpoint belongs to."""
    if not checkpoint.is_file():
        near = sorted(str(p) for p in Path(run.root).glob("*/checkpoints/*.ckpt"))
        raise CxlpError(f"checkpoint not found: {checkpoint}. {did_you_mean(str(checkpoint), near) if near else ''}")
    try:
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)["cxlp_run"]
    except Exception as error:  # torch.load raises many kinds, from UnpicklingError to EOFError
        raise CxlpError(f"{checkpoint} is not a checkpoint that train.py wrote: {error}") from error
    return checkpoint.absolute().parent.parent, saved["wandb_id"]


def _counts(data: ImageDataModule) -> dict[str, int]:
    return {name: len(split) for name, split in data.splits.items()}


def _closing_table(cli: CLI, metrics: dict[str, float], times: dict[str, float], best: str) -> None:
    counts = _counts(cli.datamodule)
    table = Table(title=f"{cli.datamodule.name}: {', '.join(f'{n} {k}' for k, n in counts.items())} images")
    table.add_column("what")
    table.add_column("value", justify="right")
    for key, value in metrics.items():
        table.add_row(key, f"{value:.2%}" if "accuracy" in key else f"{value:.4g}")
    table.add_section()
    for phase, seconds in times.items():
        table.add_row(f"time: {phase}", f"{seconds:.1f} s")
    console = Console()
    console.print(table)
    console.print(f"Everything is in {cli.run_folder} (tested: {best or 'the final weights'})", soft_wrap=True)
    look = how_to_look(cli.run_folder)
    if look:
        console.print(f"Look at the curves: {look}", soft_wrap=True, highlight=False)


def _mendable(error: BaseException | None) -> CxlpError | None:
    """The user's error behind an exception: the parser wraps what constructors raise."""
    while error is not None and not isinstance(error, CxlpError):
        error = error.__cause__
    return error


def _rank() -> int:
    """This process's rank before there is a process group, as Lightning read it from the launcher's variables."""
    return int(getattr(rank_zero_only, "rank", 0))


def _quiet() -> None:
    """Silence what a user cannot act upon, and keep wandb from talking at length."""
    os.environ.setdefault("WANDB_SILENT", "true")
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in (
        r".*isinstance\(treespec, LeafSpec\).*",
        r".*does not have many workers.*",
        r".*The number of training batches .* is smaller than the logging interval.*",
        r".*Checkpoint directory .* exists and is not empty.*",
        r".*Total length of `list` across ranks is zero.*",
        r".*`configure_optimizers` returned `None`.*",
    ):
        warnings.filterwarnings("ignore", message)
