"""The command line: configs in, one run folder out."""

import json
import logging
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from jsonargparse import Namespace
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar, TQDMProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]
from rich.console import Console
from rich.table import Table

from cxlp.callbacks import RunIdentity, TestReport, checkpoints, save_from_step_0, write_whole
from cxlp.config_errors import explain, refuse_nulls
from cxlp.cost import measure_cost, peak_memory
from cxlp.data import DATA_MODULES
from cxlp.data.base import ImageDataModule
from cxlp.distributed import is_distributed
from cxlp.errors import CxlpError, did_you_mean
from cxlp.locking import hold, let_go
from cxlp.logging import RunConfig, build_loggers, how_to_look
from cxlp.metrics import SELECTION
from cxlp.network import read_checkpoint
from cxlp.tasks import Frozen
from cxlp.tasks.base import CrossLayerTask

CONFIGS = Path(__file__).parent.parent / "configs"
#: What may stand at ``class_path``, besides a user's own subclasses.
CLASSES = {
    "model": ("cxlp.tasks.Frozen", "cxlp.tasks.FineTune"),
    "data": tuple(DATA_MODULES.values()),
}


def main(args: Sequence[str] | None = None) -> int:
    """Run ``train.py``.

    Args:
        args: Arguments; ``None``: those of the process.

    Returns:
        The exit status: 0; 2 where the user can mend something; 130 where the user interrupted.
    """
    _quiet()
    cli: CLI | None = None
    try:
        arguments = find_configs(sys.argv[1:] if args is None else args)
        if args is None:
            sys.argv[1:] = arguments  # what the processes of further ranks are started with
        cli = CLI(nested_as_configs(arguments))
        train_and_test(cli)
    except (KeyboardInterrupt, SystemExit) as error:
        # Lightning turns the first into the second.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        if _rank() == 0:
            print(f"\ninterrupted. {_how_to_go_on(cli)}", file=sys.stderr)  # noqa: T201
        return 130
    except Exception as error:
        said = _mendable(error)
        if said is None:
            raise
        print(f"error: {said}", file=sys.stderr)  # noqa: T201
        return 2
    finally:
        let_go()
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
        refuse_nulls(self.config, CLASSES)

    @property
    def run_config(self) -> RunConfig:
        """What the user asked of the run as such."""
        given = self.config_init["run"]
        return given if isinstance(given, RunConfig) else RunConfig(**given.as_dict())

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Make the run's folder, and a Trainer that writes there."""
        run = self.run_config
        trainer = self.config_init["trainer"]
        self._check_trainer(trainer)
        resumed = self.config["ckpt_path"]
        folder, wandb_id = _resume(Path(resumed), run) if resumed else (None, None)
        self.run_folder = folder or _new_folder(run, self.config)
        if _rank() == 0:
            hold(self.run_folder)
        if trainer["logger"] in (None, True):
            kwargs["logger"] = build_loggers(run, self.run_folder, wandb_id, _rank())
        given = trainer["callbacks"] or []
        given = list(given) if isinstance(given, list | tuple) else [given]
        callbacks: list[pl.Callback] = [TestReport(self.run_folder), RunIdentity()]
        if not any(isinstance(c, ModelCheckpoint) for c in given) and trainer["enable_checkpointing"] is not False:
            monitor = f"val/{SELECTION[self.datamodule.multi_label]}" if self.datamodule.validation else None
            callbacks.extend(checkpoints(self.run_folder / "checkpoints", monitor))
        for callback in given:
            if isinstance(callback, ModelCheckpoint):
                save_from_step_0(callback)
                callback.dirpath = callback.dirpath or str(self.run_folder / "checkpoints")
        if not any(isinstance(c, ProgressBar) for c in given) and trainer["enable_progress_bar"] is not False:
            callbacks.append(TQDMProgressBar())  # as the fit's own bars: a live display would clash with them
        if self.model.automatic_optimization and trainer["logger"] is not False:
            callbacks.append(LearningRateMonitor("step"))
        if isinstance(self.model, Frozen):
            kwargs["max_epochs"] = 1
        kwargs |= {"callbacks": [*given, *callbacks], "default_root_dir": str(self.run_folder)}
        return super().instantiate_trainer(**kwargs)

    def _check_trainer(self, trainer: Namespace) -> None:
        """Refuse what would have no effect."""
        if trainer["default_root_dir"] is not None:
            raise CxlpError("trainer.default_root_dir: a run's folder is made in run.root; set --run.root")
        limit = trainer["limit_test_batches"]
        if limit not in (None, 1.0) or isinstance(limit, int) or trainer["barebones"]:  # 1 is a batch, 1.0 all of them
            raise CxlpError(
                "trainer.limit_test_batches, trainer.barebones: a run ends with its whole test; leave them out"
            )
        if self.datamodule.validation and trainer["limit_val_batches"] == 0:
            raise CxlpError(
                f"trainer.limit_val_batches is 0, but data.validation holds out {self.datamodule.validation}: the best "
                "checkpoint is chosen by these images. Leave one of them out"
            )
        if isinstance(self.model, Frozen) and trainer["max_epochs"] not in (None, 1):
            raise CxlpError(
                f"trainer.max_epochs is {trainer['max_epochs']}, but the frozen mode takes one pass: leave it out, "
                "or add --config finetune.yaml"
            )

    def after_instantiate_classes(self) -> None:
        """Save the whole resolved config in the run's folder and in wandb."""
        if _rank() != 0:
            return
        if not (self.run_folder / "config.yaml").exists():  # a resumed run keeps its own
            self.save_config("config.yaml")
        for logger in self.trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.config.update(self.config.as_dict(), allow_val_change=True)

    def save_config(self, file: str) -> None:
        """Write the whole resolved config into the run's folder."""
        config = self.config.clone()
        config["ckpt_path"] = None  # the config of a run is how to do it again, not how to go on with it
        write_whole(self.run_folder / file, self.parser.dump(config, skip_unset=False))


def train_and_test(cli: CLI) -> None:
    """Fit, test the right checkpoint, and write down what came out.

    The right checkpoint is the best on the validation images where there are any, else the last.
    """
    start = time.perf_counter()
    task, data, trainer = cli.model, cli.datamodule, cli.trainer
    task.resuming = bool(cli.config["ckpt_path"])
    trainer.fit(task, data, ckpt_path=cli.config["ckpt_path"], weights_only=True if cli.config["ckpt_path"] else None)
    if task.ordered_epochs and not task.report:
        raise CxlpError("the run was stopped before its first epoch was over (trainer.max_time?): nothing was fitted")
    if cli.config["ckpt_path"] and trainer.is_global_zero:  # now that it is known to belong to the run
        cli.save_config("config-resumed.yaml")
    checkpoint = trainer.checkpoint_callback
    best = checkpoint.best_model_path if isinstance(checkpoint, ModelCheckpoint) else ""
    results = trainer.test(task, data, ckpt_path=best or None, weights_only=True if best else None, verbose=False)
    if trainer.is_global_zero:
        # Of the checkpoint that is tested, as is all else in here.
        metrics = {**results[0], **task.validated, **{f"frozen/{k}": v for k, v in task.report.items()}}
        # Of the phases, a resumed run knows all the time they took; of what is between them, this process's only.
        whole = "since resumed" if cli.config["ckpt_path"] else "total"
        times = {**task.times, whole: time.perf_counter() - start}
        summary = {
            "metrics": {k: v if math.isfinite(v) else None for k, v in metrics.items()},  # JSON knows no NaN
            "seconds": times,
            "tested": best or "final weights",
            "images": _counts(data),
        }
        if task.made_earlier:
            summary["features made by an earlier run"] = task.made_earlier
        if cli.run_config.cost:
            task.to(trainer.strategy.root_device)  # which Lightning has left
            with trainer.precision_plugin.forward_context():
                summary["cost"] = measure_cost(task.network, data.splits["test"], task.frozen.features)
        summary["memory"] = peak_memory()
        write_whole(cli.run_folder / "metrics.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.summary.update({f"seconds/{k}": v for k, v in times.items()})
                logger.experiment.finish()
        _closing_table(cli, metrics, times, best)


def parse(arguments: Sequence[str]) -> Namespace:
    """Resolve arguments of ``train.py`` without building anything.

    Raises:
        CxlpError: As ``train.py`` would.
    """
    _quiet()
    return _Parsed(nested_as_configs(find_configs(arguments))).config


class _Parsed(CLI):
    def instantiate_classes(self) -> None:
        """Build nothing."""

    def after_instantiate_classes(self) -> None:
        """Write nothing."""


def find_configs(args: Sequence[str]) -> list[str]:
    """Replace each ``--config NAME`` by the path of that file, here or in ``configs/``, and put them first.

    Raises:
        CxlpError: If there is none; names those there are.
    """
    if not args or not args[0].startswith("-"):
        what = f"{args[0]!r} stands alone" if args else "there is nothing to run"
        raise CxlpError(f"{what}: name a config, python train.py --config {args[0] if args else 'demo.yaml'}")
    found = list(args)
    for i, arg in enumerate(found):
        if arg in ("--config", "-c") and i + 1 < len(found):
            found[i + 1] = str(_config_path(found[i + 1]))
        elif arg.startswith("--config="):
            found[i] = f"--config={_config_path(arg.removeprefix('--config='))}"
    # Configs first: whatever stands on the command line itself has the last word.
    configs: list[str] = []
    others: list[str] = []
    while found:
        arg = found.pop(0)
        if arg in ("--config", "-c") and found:
            configs += [arg, found.pop(0)]
        else:
            (configs if arg.startswith("--config=") else others).append(arg)
    _check_overlays([c.removeprefix("--config=") for c in configs if c not in ("--config", "-c")])
    return configs + others


def _check_overlays(paths: Sequence[str]) -> None:
    """Refuse files that hold no keys, and overlays that come before what they change."""
    described: set[str] = set()
    for path in paths:
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise CxlpError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict):
            raise CxlpError(f"{path} holds no keys: it is {'empty' if content is None else repr(content)}")
        for key in CLASSES:
            part = content.get(key) or {}
            if isinstance(part, dict) and "class_path" in part:
                described.add(key)
            elif part and key not in described:
                raise CxlpError(
                    f"{path} is an overlay: it changes {key}, which no config before it describes. Put a whole one "
                    "before it, such as --config cub200.yaml"
                )


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
        is_nested = (
            name.startswith("--")
            and top in CLASSES
            and path.split(".")[-1] not in ("", "class_path", "init_args", "help")
        )
        lacks_value = not equals and (not rest or rest[0].startswith("--"))
        if is_nested and lacks_value:
            raise CxlpError(f"{name} has no value: give {name} VALUE")
        if not is_nested:
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
    if run.name and Path(run.name).name != run.name:
        raise CxlpError(f"run.name is {run.name!r}: a name without slashes; the place is --run.root")
    name = run.name or "-".join([*files, datetime.now().strftime("%Y%m%d-%H%M%S")])
    for number in range(1, 10_000):
        folder = root / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if folder.is_dir():
                continue
            raise CxlpError(f"cannot make a run's folder: {folder} is a file. Give another --run.root") from None
        except OSError as error:
            raise CxlpError(f"cannot make {folder}: {error.strerror}. Give another --run.root") from error
        if number > 1:
            print(f"{root / name} holds a run already: this one goes to {folder}")  # noqa: T201
        return folder
    raise CxlpError(f"{root} holds 9,999 runs called {name}; choose another --run.name")


def _resume(checkpoint: Path, run: RunConfig) -> tuple[Path | None, str | None]:
    """The folder and the wandb id of the run that a checkpoint belongs to; a copy elsewhere belongs to none."""
    if not checkpoint.is_file():
        near = sorted(str(p) for p in Path(run.root).glob("*/checkpoints/*.ckpt"))
        raise CxlpError(f"checkpoint not found: {checkpoint}. {did_you_mean(str(checkpoint), near) if near else ''}")
    saved = read_checkpoint(checkpoint)
    folder = checkpoint.absolute().parent.parent
    if checkpoint.absolute().parent.name != "checkpoints" or not (folder / "config.yaml").is_file():
        return None, None
    return folder, saved["cxlp_run"]["wandb_id"]


def _counts(data: ImageDataModule) -> dict[str, int]:
    return {name: len(split) for name, split in data.splits.items()}


def _closing_table(cli: CLI, metrics: dict[str, float], times: dict[str, float], best: str) -> None:
    counts = _counts(cli.datamodule)
    table = Table(title=f"{cli.datamodule.name}: {', '.join(f'{n} {k}' for k, n in counts.items())} images")
    table.add_column("what")
    table.add_column("value", justify="right")
    for key, value in metrics.items():
        table.add_row(key, f"{value:.2%}" if "accuracy" in key or "mAP" in key else f"{value:.4g}")
    table.add_section()
    for phase, seconds in times.items():
        table.add_row(f"time: {phase}", f"{seconds:.1f} s")
    console = Console()
    console.print(table)
    console.print(f"Everything is in {cli.run_folder} (tested: {best or 'the final weights'})", soft_wrap=True)
    look = how_to_look(cli.run_folder)
    if look:
        console.print(f"Look at the curves: {look}", soft_wrap=True, highlight=False)


def _how_to_go_on(cli: CLI | None) -> str:
    folder = getattr(cli, "run_folder", None)
    if folder is None or not (folder / "checkpoints" / "last.ckpt").is_file():
        return "Nothing was saved yet: begin again"
    return f"Go on with: --config {folder}/config.yaml --ckpt_path {folder}/checkpoints/last.ckpt"


def _mendable(error: BaseException | None) -> str | None:
    """What to tell the user of an exception that they can mend; ``None`` for one that we have to."""
    while error is not None:  # the parser wraps what constructors raise
        if isinstance(error, CxlpError):
            # From a loader's worker, the message carries the worker's traceback.
            return str(error).rpartition("CxlpError: ")[2].strip()
        if isinstance(error, MisconfigurationException):
            return " ".join(str(error).split())
        if is_distributed() and re.search("Connection (closed by|reset by) peer|Socket closed", str(error)):
            return "another process of this run has stopped: see its message"
        error = error.__cause__
    return None


def _rank() -> int:
    """This process's rank before there is a process group, as Lightning read it from the launcher's variables."""
    launched = "RANK" in os.environ or "SLURM_PROCID" in os.environ
    if not launched and int(os.environ.get("NODE_RANK", 0)) > 0:
        return int(os.environ["NODE_RANK"])  # Lightning's own launcher: on other machines nobody is rank 0
    return int(getattr(rank_zero_only, "rank", 0))


def _quiet() -> None:
    """Silence what a user cannot act upon, and keep wandb from talking at length."""
    os.environ.setdefault("WANDB_SILENT", "true")
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r".*isinstance\(treespec, LeafSpec\).*",
        r".*does not have many workers.*",
        r".*The number of training batches .* is smaller than the logging interval.*",
        r".*Checkpoint directory .* exists and is not empty.*",
        r".*Total length of `list` across ranks is zero.*",
        r".*configure_optimizers` returned `None`.*",
    ):
        warnings.filterwarnings("ignore", message)


if __name__ == "__main__":
    sys.exit(main())
