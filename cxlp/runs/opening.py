"""A run before its stages: its data and network, its folder, and what is done there already."""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import wandb
from jsonargparse import Namespace

from cxlp.data.datamodule import ImageDataModule
from cxlp.frozen.cache import digest_of_weights
from cxlp.frozen.folds import FoldClassifiers
from cxlp.models.checkpoint import read_checkpoint
from cxlp.models.network import Network
from cxlp.reports.outputs import Outputs
from cxlp.reports.result import TestResult
from cxlp.runs.callbacks import Progress
from cxlp.runs.checks import check_held_out, check_trainer
from cxlp.runs.cli import build_parser, parts_of
from cxlp.runs.folder import (
    find_earlier,
    find_resumed,
    new_folder,
    read_run,
    refit_folder,
    run_name,
    say,
)
from cxlp.runs.launch import launched_rank
from cxlp.runs.loggers import RunConfig
from cxlp.runs.places import STARTS
from cxlp.runs.protocol import (
    Images,
    check_classes,
    check_images,
    check_recipe,
    check_refitted_images,
    recipe_of,
    same_run,
)
from cxlp.runs.provenance import Provenance
from cxlp.runs.recipe import ModelConfig
from cxlp.runs.refit import Choice, read_chosen, stage_of
from cxlp.runs.start import Start, read_start
from cxlp.runs.trainers import remark_on_precision, without_gradients
from cxlp.tasks.feature_reuse import FeatureReuse
from cxlp.utils.errors import CxlpError
from cxlp.utils.files import copy_whole, write_whole
from cxlp.utils.locking import hold
from cxlp.utils.memory import keep_freed_memory
from cxlp.utils.profiling import PhaseTimes

#: What a run writes about its stages.
STAGES = "stages.json"

#: The checkpoint of a stage that a run goes on from.
_LAST = {"frozen": "frozen", "finetune": "last", "closing": "closing"}


@dataclass(frozen=True)
class Done:
    """A stage that is done.

    Attributes:
        checkpoint: Its best one, relative to the run's folder; empty: none was saved.
        last: Its last one, which the next stage starts from.
        epoch: The epoch of ``checkpoint``, counted over all stages: the frozen fit is epoch 0.
        epochs: How many the run had after the stage.
        validated: What the held-out images say of ``checkpoint``.
        precision: The Trainer's in that stage.
    """

    checkpoint: str
    last: str
    epoch: int
    epochs: int
    validated: dict[str, float]
    precision: str


class OpenedRun:
    """A run that can begin, or go on; nothing is written before that is known.

    Args:
        config: Resolved, see :func:`cxlp.runs.cli.parse`.

    Attributes:
        folder: The run's.
        data: Set up.
        network: Built, and fitted as far as the run has come.
        done: The stages that are done, by name, in order.
        times: Seconds by phase.
        choice: For a refit, the epoch to stop after.
        progress: How many images were seen.
        resumed: The checkpoint that this process went on from.
        experiment: The wandb run, on rank 0; ``None`` where it is off.
        reuse: Features of earlier runs, where they are kept.
        report: What the first frozen fit chose and found.
        tested: What the test has found, on rank 0.
        outputs: Makes what may fail while the run goes on: logs, tables, pictures.
    """

    def __init__(self, config: Namespace) -> None:
        keep_freed_memory()
        self.config = config
        self.settings = RunConfig(**config["run"].as_dict())
        parts = parts_of(config)
        self.model: ModelConfig = parts["model"]
        self.data: ImageDataModule = parts["data"]
        check_trainer(config, self.model)
        run_name(self.settings)
        pl.seed_everything(config["seed_everything"], workers=True)
        self.times, self.progress = PhaseTimes(), Progress()
        self.done: dict[str, Done] = {}
        self.report: dict[str, float] = {}
        self.tested: TestResult | None = None
        self.outputs = Outputs()
        self.experiment: wandb.Run | None = None
        self.reuse: FeatureReuse | None = None
        self._folds: FoldClassifiers | None = None
        self._trainer: pl.Trainer | None = None
        self._stage = ""
        given = config["ckpt_path"] or find_earlier(self.settings)
        folder: Path | None = None
        self.resumed: Path | None = None
        self._wandb_id: str | None = None
        if given is not None:
            folder, self.resumed, self._wandb_id = find_resumed(Path(given), self.settings)
        if folder is not None and launched_rank() == 0:
            hold(folder)
        saved = read_run(self.resumed) if self.resumed is not None else None
        self.data.progress = config["trainer"]["enable_progress_bar"] is not False
        self.data.prepare_data()
        self.data.setup()
        check_held_out(config, len(self.data.splits["val"]))
        self.network: Network = self.model.build(self.data.classes, self.data.multi_label)
        self.data.resize(self.network.image_size, self.network.test_size)
        self._images, self._weights = Images.of(self.data), digest_of_weights(self.network.backbone)
        self._precision = without_gradients(config["trainer"])
        if launched_rank() == 0:
            for line in self.data.remarks():
                print(line, file=sys.stderr)  # noqa: T201
        self._seen = torch.unique(self._images.fingerprints["train"])
        self.choice = self._read_choice(saved)
        self._is_new = folder is None
        self._start: Start | None = None
        if saved is not None:
            self._check_same(saved)
        elif self.model.start not in STARTS:
            self._start = read_start(self.model, self.network, recipe_of(config), self._images)
        self.folder = folder or new_folder(self.settings, config, self.data)
        self._write_config(saved)
        if saved is not None:
            self._take_up(saved)
        self._provenance = Provenance(self.folder, self.data)
        if launched_rank() == 0:
            say(remark_on_precision(config["trainer"], self._precision))

    # --- what is there already --------------------------------------------------------------------

    def _read_choice(self, saved: Mapping[str, Any] | None) -> Choice | None:
        """Read which epoch a refit ends after: of a resumed one, as it was when it began.

        Raises:
            CxlpError: If it was chosen for another recipe, other images or other weights.
        """
        path = self.settings.refit if isinstance(self.settings.refit, str) else None
        if saved is not None:
            known = saved["cxlp_run"]["choice"]
            if (known is None) != (path is None):
                raise CxlpError("run.refit is given to a run that was no refit, or left out of one: leave it as it was")
            return None if known is None else Choice(**known)
        if path is None:
            return None
        chosen = read_chosen(path)
        run = chosen["cxlp_run"]
        try:
            check_recipe(run["recipe"], recipe_of(self.config))
            check_classes(chosen["cxlp"]["network"]["classes"], self.data.classes)
            check_refitted_images(Images(**run["images"]), self._images)
            if run["weights"] != self._weights:
                raise CxlpError("model.backbone.weights are others than those of the run that has chosen the epoch")
        except CxlpError as error:
            raise CxlpError(f"run.refit: {error}") from error
        return Choice.of(path, chosen)

    def _check_same(self, saved: Mapping[str, Any]) -> None:
        """Refuse to go on with a run of another recipe, other classes or other images."""
        recipe, known = recipe_of(self.config), saved["cxlp_run"]["recipe"]
        epochs = "trainer.max_epochs"
        if not self.model.closing_fit and recipe[epochs] > known[epochs]:  # such a run may be made longer
            known = {**known, epochs: recipe[epochs]}
        check_recipe(known, recipe)
        check_classes(saved["cxlp"]["network"]["classes"], self.data.classes)
        check_images(Images(**saved["cxlp_run"]["images"]), self._images)

    def _write_config(self, saved: Mapping[str, Any] | None) -> None:
        if launched_rank() != 0:
            return
        if self._is_new:
            hold(self.folder)
        config = self.config.clone()
        config["ckpt_path"] = None  # how to do the run again, not how to go on with it
        text = build_parser().dump(config, skip_unset=False)
        if saved is not None:  # a resumed run keeps its own
            write_whole(self.folder / "config-resumed.yaml", text)
        if saved is None or not (self.folder / "config.yaml").exists() or self._is_longer(saved):
            write_whole(self.folder / "config.yaml", text)
        if self.data.broken:
            write_whole(self.folder / "broken.txt", "\n".join(sorted(self.data.broken.values())) + "\n")
        if saved is not None and self._is_longer(saved):  # for good, and it is not at its end
            for place in (self.folder, refit_folder(self.folder)):
                (place / "metrics.json").unlink(missing_ok=True)

    def _is_longer(self, saved: Mapping[str, Any]) -> bool:
        return bool(saved["cxlp_run"]["recipe"]["trainer.max_epochs"] != self.config["trainer"]["max_epochs"])

    def _take_up(self, saved: Mapping[str, Any]) -> None:
        """Go on where a checkpoint is."""
        self.done = self._find_done(saved)
        run = saved["cxlp_run"]
        self.times.update(saved["cxlp"]["times"])
        self.progress.images, self.progress.phases = run["images_seen"], dict(run["images_by_phase"])
        self.report, self._seen, self._weights = run["report"], run["seen"], run["weights"]
        self._write_done()

    def _find_done(self, saved: Mapping[str, Any]) -> dict[str, Done]:
        """The stages that are done: those of ``stages.json``, and what the checkpoint itself tells."""
        assert self.resumed is not None
        run, stage = saved["cxlp_run"], stage_of(saved)
        if self._is_new:
            path, done = f"checkpoints/{_LAST[stage]}.ckpt", self._bring_stages(saved)
        else:
            state = self.folder / STAGES
            found = json.loads(state.read_text()) if state.is_file() else {}
            path, done = self._place(self.resumed), {k: Done(**v) for k, v in found.items() if v["checkpoint"]}
        if stage != "frozen" and self.model.start != "scratch":
            done.setdefault("frozen", Done(path, path, 0, 1, {}, run["precision"]))
        if stage == "closing":
            first = run["first_epoch"]
            done.setdefault("finetune", Done(path, path, first - 1, first, {}, run["precision"]))
        if stage != "finetune":  # killed before stages.json was written
            epoch = run["first_epoch"]
            done.setdefault(stage, Done(path, path, epoch, epoch + 1, saved["cxlp"]["validated"], run["precision"]))
        elif self._is_longer(saved):
            done.pop("finetune", None)
        return {name: done[name] for name in ("frozen", "finetune", "closing") if name in done}

    def _bring_stages(self, saved: Mapping[str, Any]) -> dict[str, Done]:
        """Copy a checkpoint from elsewhere, with those of the stages before it, so that this run has all it needs."""
        assert self.resumed is not None
        copies = launched_rank() == 0
        if copies:
            copy_whole(self.resumed, self.folder / "checkpoints" / f"{_LAST[stage_of(saved)]}.ckpt")
        done = {}
        for name, facts in saved["cxlp_run"]["stages"].items():
            source = Path(saved["cxlp_run"]["folder"], facts["checkpoint"])
            found = read_checkpoint(source) if source.is_file() else None
            same = found is not None and same_run(found, saved, start=source.name == "start.ckpt")
            if found is not None and same and found["cxlp"]["validated"] == facts["validated"]:
                path = f"checkpoints/{source.name}"
                done[name] = Done(**{**facts, "checkpoint": path, "last": path})
                if copies:
                    copy_whole(source, self.folder / path)
            elif facts["validated"] and copies:
                say(f"warning: {source}, the best of the stage {name}, is not there any more: it does not compete")
        return done

    def _place(self, path: str | Path) -> str:
        """Where a file is: relative to the run's folder if it is in there, since that may be moved."""
        real, folder = Path(os.path.realpath(path)), Path(os.path.realpath(self.folder))
        return str(real.relative_to(folder) if real.is_relative_to(folder) else real)

    def discard(self) -> None:
        """Delete the folder of a run that has failed before anything in it was done."""
        nothing = self._is_new and not self.done and self._stage in ("", "frozen")
        if launched_rank() != 0 or not nothing or not self.folder.is_dir() or any(self.folder.rglob("*.ckpt")):
            return
        if self.experiment is not None:
            self.experiment.finish(exit_code=1)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def saves(self) -> bool:
        """Whether checkpoints are written."""
        return self.config["trainer"]["enable_checkpointing"] is not False

    def _write_done(self) -> None:
        if launched_rank() == 0 and self.saves:
            found = {stage: asdict(done) for stage, done in self.done.items()}
            write_whole(self.folder / STAGES, json.dumps(found, indent=2) + "\n")
