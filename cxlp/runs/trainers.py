"""The Trainer of a stage, built from the options of ``trainer``."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from pydoc import locate
from typing import Any

import pytorch_lightning as pl
import torch
from jsonargparse import Namespace
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.accelerators import CUDAAccelerator
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, ProgressBar
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins import Precision as PrecisionPlugin
from pytorch_lightning.plugins.io import CheckpointIO

from cxlp.runs.bars import StageBar
from cxlp.runs.callbacks import AtomicCheckpointIO, EpochSeed, MovedCheckpoints, checkpoints
from cxlp.runs.cli import build_parser
from cxlp.runs.recipe import GRADIENT_TRAINER_KEYS
from cxlp.runs.signals import Signals
from cxlp.utils.errors import CxlpError
from cxlp.utils.precision import Precision, fastest_precision


def build_trainer(
    config: Namespace,
    stage: str,
    folder: Path,
    callbacks: Sequence[Callback],
    loggers: list[Logger],
    monitor: str | None,
    refit: bool,
    precision: str,
) -> pl.Trainer:
    """Build the Trainer of a stage; options and callbacks for gradient epochs apply to those only.

    Args:
        config: The resolved config.
        stage: ``layers``, ``frozen``, ``finetune``, ``closing`` or ``test``.
        folder: The run's folder.
        callbacks: Callbacks of the run, in addition to those of this module.
        loggers: Loggers of the run, used unless the user has set ``trainer.logger``.
        monitor: The metric that chooses the best epoch; ``None`` if no images are held out.
        refit: Whether an earlier run chose the epoch to stop after.
        precision: Precision of the stage, used unless the user has set one.
    """
    # Instantiate for each stage: strategies, plugins and the user's callbacks belong to a single Trainer.
    given = build_parser().instantiate(config.clone())["trainer"].as_dict()
    users, plugins = _listed(given.pop("callbacks")), _listed(given.pop("plugins"))
    saves, logs = given["enable_checkpointing"] is not False, given["logger"] is not False
    own = [EpochSeed(), MovedCheckpoints(), Signals()]
    if stage == "finetune":
        if refit:  # no images are held out, so callbacks cannot monitor validation metrics
            users = [c for c in users if not str(getattr(c, "monitor", "")).startswith("val/")]
            given |= {"min_epochs": None, "min_steps": None}
        if saves:  # the best checkpoint, unless the user's ModelCheckpoint chooses it, and the last one
            theirs = any(isinstance(c, ModelCheckpoint) for c in users)
            own += checkpoints(folder / "checkpoints", None if theirs else monitor)
        if logs:
            own.append(LearningRateMonitor("step"))
    else:
        defaults = build_parser().get_defaults()["trainer"]
        given |= {key: defaults[key] for key in GRADIENT_TRAINER_KEYS}
        if stage == "test":
            users = [c for c in users if not isinstance(c, ModelCheckpoint)]
        elif stage == "layers" or config["trainer"]["max_epochs"]:
            users = [c for c in users if isinstance(c, ProgressBar)]
        given |= {"max_epochs": 1, "enable_checkpointing": saves and any(isinstance(c, ModelCheckpoint) for c in users)}
    for callback in users:
        if isinstance(callback, ModelCheckpoint):
            callback.dirpath = callback.dirpath or os.path.realpath(folder / "checkpoints")
    if given["enable_progress_bar"] is not False and not any(isinstance(c, ProgressBar) for c in users):
        own.append(StageBar(stage))
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins.append(AtomicCheckpointIO())
    slurm = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    if slurm and not any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
        # Lightning's requeueing saves a checkpoint within an epoch, but runs resume only from the end of an epoch.
        plugins.append(SLURMEnvironment(auto_requeue=False))
    if given["logger"] in (None, True) or stage == "layers":
        given["logger"] = loggers
    if given["precision"] is None and not any(isinstance(plugin, PrecisionPlugin) for plugin in plugins):
        given["precision"] = precision
    given |= {"default_root_dir": str(folder), "callbacks": [*users, *callbacks, *own], "plugins": plugins}
    try:
        return pl.Trainer(**given)
    except (TypeError, ValueError) as error:
        raise CxlpError(f"trainer: {' '.join(str(error).split())}") from error


def without_gradients(trainer: Namespace) -> Precision:
    """The default precision of stages without gradients, and the reason for it.

    Args:
        trainer: Options of the Trainer.
    """
    kind = trainer["accelerator"]
    if kind not in ("auto", "gpu", "cuda"):
        if kind in ("cpu", "mps"):
            return fastest_precision(str(kind))
        return Precision("32-true", f"it is unknown whether accelerator {kind} computes with bfloat16")
    if torch.cuda.is_available():
        devices = trainer["devices"]
        chosen = CUDAAccelerator.parse_devices(-1 if devices == "auto" else devices) or [0]
        found = [fastest_precision(f"cuda:{device}") for device in chosen]
        return next(
            (each for each in found if each.name == "32-true"), found[0]
        )  # 32-true if any device lacks bfloat16
    return fastest_precision("mps" if torch.backends.mps.is_available() else "cpu")


def describe_precision(trainer: Namespace, found: Precision) -> str:
    """Describe the precision of a run, and the reason for it.

    Args:
        trainer: Options of the Trainer.
        found: The default precision, see :func:`without_gradients`.
    """
    for plugin in _listed(trainer["plugins"]):
        path = plugin.get("class_path", "") if isinstance(plugin, Mapping | Namespace) else ""
        kind = locate(path)
        if isinstance(kind, type) and issubclass(kind, PrecisionPlugin):
            return f"set by the plugin {kind.__name__}"
    if trainer["precision"] is not None:
        return f"{trainer['precision']}, as given"
    epochs = "; gradient epochs 32-true" if trainer["max_epochs"] else ""
    return f"{found.name}, since {found.why}{epochs}"


def _listed(given: Any) -> list[Any]:  # noqa: ANN401 (a value, several, or none)
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]
