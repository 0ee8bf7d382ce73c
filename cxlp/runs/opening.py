"""Preparation of a run before its stages: data, network, folder, and state of a resumed run."""

import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import wandb
from jsonargparse import Namespace
from pytorch_lightning.utilities.seed import isolate_rng

from cxlp.data.datamodule import ImageDataModule
from cxlp.frozen.cache import digest_of_weights
from cxlp.frozen.folds import FoldClassifiers
from cxlp.metrics.classification import SELECTION
from cxlp.models.network import Network
from cxlp.reports.outputs import Outputs
from cxlp.reports.result import TestResult
from cxlp.runs.callbacks import Progress
from cxlp.runs.checks import check_held_out, check_trainer
from cxlp.runs.cli import build_parser, parts_of
from cxlp.runs.done import Done, find_done, write_done
from cxlp.runs.epochs import EpochLines, title
from cxlp.runs.folder import (
    find_earlier,
    find_resumed,
    new_folder,
    read_run,
    refit_folder,
    run_name,
)
from cxlp.runs.launch import launched_rank
from cxlp.runs.layers import FILE, Ranking, choose_pair, rank_in_run, read_earlier_layers
from cxlp.runs.loggers import RunConfig, labelled
from cxlp.runs.places import STARTS
from cxlp.runs.protocol import (
    Images,
    check_classes,
    check_images,
    check_recipe,
    check_refitted_images,
    recipe_of,
)
from cxlp.runs.provenance import Provenance
from cxlp.runs.recipe import ModelConfig
from cxlp.runs.refit import Choice, read_chosen
from cxlp.runs.start import Start, read_start
from cxlp.runs.trainers import without_gradients
from cxlp.runs.wandb_runs import JobType, start_wandb
from cxlp.tasks.feature_reuse import FeatureReuse
from cxlp.utils.errors import CxlpError
from cxlp.utils.files import write_whole
from cxlp.utils.locking import hold
from cxlp.utils.memory import keep_freed_memory
from cxlp.utils.profiling import PhaseTimes
from cxlp.utils.progress import say
from cxlp.utils.transcript import forget, keep

#: The file with the terminal output of a run.
LOG = "log.txt"


class OpenedRun:
    """A run that is ready to start or to resume; no file is written before all checks have passed.

    Args:
        config: The resolved config, see :func:`cxlp.runs.cli.parse`.

    Attributes:
        folder: The run's folder.
        data: The DataModule, set up.
        network: The network, fitted up to the last finished stage.
        done: The finished stages, by name, in order.
        times: Seconds by phase.
        choice: For a refit, the epoch to stop after; ``None`` otherwise.
        progress: Callback that counts the images seen.
        lines: Callback that prints a line for each epoch.
        resumed: The checkpoint that this process resumed from; ``None`` for a new run.
        experiment: The wandb run, on rank 0; ``None`` before the first metrics are logged, and if wandb is off.
        reuse: Stored features of earlier runs, if ``model.frozen.store`` is set.
        report: Hyperparameters and scores of the first frozen fit.
        tested: The result of the test, on rank 0.
        outputs: Writes optional outputs (logs, tables, pictures), whose failure does not stop the run.
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
        self.lines = EpochLines(f"val/{SELECTION[self.data.multi_label]}", config["trainer"]["max_epochs"])
        self.done: dict[str, Done] = {}
        self.report: dict[str, float] = {}
        self.tested: TestResult | None = None
        self.outputs = Outputs()
        self.experiment: wandb.Run | None = None
        self._has_begun_wandb = False
        self.reuse: FeatureReuse | None = None
        self._folds: FoldClassifiers | None = None
        self._trainer: pl.Trainer | None = None
        self._stage = self._plan = ""
        self._images_before = 0
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
        self._ranking: Ranking | None = None
        if self.model.backbone.layers == "auto":
            self._choose_layers(saved)
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
        try:
            self._settle(saved)
        except BaseException:
            self.discard()
            raise

    def _settle(self, saved: Mapping[str, Any] | None) -> None:
        """Write the run's config, and restore the state of a resumed run."""
        if launched_rank() == 0:
            keep(self.folder / LOG, shlex.join(sys.orig_argv))
        else:
            forget()
        self._write_config(saved)
        if saved is not None:
            self._take_up(saved)
        self._images_before = self.progress.images
        self._provenance = Provenance(self.folder, self.data)

    def _choose_layers(self, saved: Mapping[str, Any] | None) -> None:
        """Replace ``layers: auto`` by the names of two layers, in the config and in the model's options."""
        layers = read_earlier_layers(self.model, self.settings, saved)
        if layers is None:
            # The random state of the rest of the run does not depend on whether pairs were ranked.
            with self.times.measure("choice of layers"), isolate_rng(include_cuda=False):
                self._ranking = rank_in_run(self.config, self.model, self.data)
                layers, said = choose_pair(self._ranking, self.model.backbone, self.model.heads)
            if launched_rank() == 0:
                say(said)
        self.config["model"]["backbone"]["layers"] = layers
        self.model = replace(self.model, backbone=replace(self.model.backbone, layers=layers))

    # --- resuming and refitting --------------------------------------------------------------------

    def _read_choice(self, saved: Mapping[str, Any] | None) -> Choice | None:
        """Read the epoch that a refit stops after; a resumed refit keeps its first choice.

        Raises:
            CxlpError: If the choosing run had another recipe, other images or other pretrained weights.
        """
        path = self.settings.refit if isinstance(self.settings.refit, str) else None
        if saved is not None:
            known = saved["cxlp_run"]["choice"]
            if (known is None) != (path is None):
                raise CxlpError("run.refit differs from the resumed run's: set it only if that run was a refit")
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
                raise CxlpError("model.backbone.weights differ from those of the run that chose the epoch")
        except CxlpError as error:
            raise CxlpError(f"run.refit: {error}") from error
        return Choice.of(path, chosen)

    def _check_same(self, saved: Mapping[str, Any]) -> None:
        """Reject resuming a run with another recipe, other classes or other images."""
        recipe, known = recipe_of(self.config), saved["cxlp_run"]["recipe"]
        epochs = "trainer.max_epochs"
        if (
            not self.model.closing_fit and recipe[epochs] > known[epochs]
        ):  # a run without closing fit may be made longer
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
        config["ckpt_path"] = None  # the file describes how to repeat the run, not how to resume it
        text = build_parser().dump(config, skip_unset=False)
        if saved is not None:  # a resumed run keeps its first config.yaml
            write_whole(self.folder / "config-resumed.yaml", text)
        if saved is None or not (self.folder / "config.yaml").exists() or self._is_longer(saved):
            write_whole(self.folder / "config.yaml", text)
        if self._ranking is not None:
            write_whole(self.folder / FILE, self._ranking.as_csv())
        if self.data.broken:
            write_whole(self.folder / "broken.txt", "\n".join(sorted(self.data.broken.values())) + "\n")
        if saved is not None and self._is_longer(
            saved
        ):  # the longer run replaces the earlier one, whose results are outdated
            for place in (self.folder, refit_folder(self.folder)):
                (place / "metrics.json").unlink(missing_ok=True)

    def _is_longer(self, saved: Mapping[str, Any]) -> bool:
        return bool(saved["cxlp_run"]["recipe"]["trainer.max_epochs"] != self.config["trainer"]["max_epochs"])

    def _take_up(self, saved: Mapping[str, Any]) -> None:
        """Restore the state of a resumed run from its checkpoint."""
        assert self.resumed is not None
        fits_first, is_longer = self.model.start != "scratch", self._is_longer(saved)
        self.done = find_done(self.folder, self.resumed, saved, self._is_new, fits_first, is_longer)
        for name, done in self.done.items():
            self.lines.take(done.validated, title(name, done.epoch))
        run = saved["cxlp_run"]
        self.times.update(saved["cxlp"]["times"])
        self.progress.images, self.progress.phases = run["images_seen"], dict(run["images_by_phase"])
        self.report, self._seen, self._weights = run["report"], run["seen"], run["weights"]
        self._write_done()

    def _begin_wandb(self) -> wandb.Run | None:
        """Start the wandb run at the first logged metrics; return ``None`` if it is off or cannot start."""
        if self._wandb_id is None or self._has_begun_wandb:
            return self.experiment
        self._has_begun_wandb = True  # even if it fails, since each attempt takes time
        mode = "FineTune" if self.config["trainer"]["max_epochs"] else "Frozen"
        counts = ", ".join(f"{len(split):,} {name}" for name, split in self.data.splits.items() if len(split))
        notes = f"{self.data.name}: {counts} images of {len(self.data.classes):,} classes. Folder: {self.folder}"
        logged = labelled(self.settings, self.data.name, *self.model.labels, mode, notes=notes)
        job: JobType = "train" if self.choice is None else "refit"
        with self.outputs.attempt("the wandb run"):
            self.experiment = start_wandb(logged, self.folder, job, self._wandb_id)
            if self.experiment is not None:
                config = self.config.as_dict()
                self.experiment.config.update(config, allow_val_change=True)  # type: ignore[no-untyped-call]
        return self.experiment

    def discard(self) -> None:
        """Delete the folder of a new run that failed before its first batch or within its first frozen fit."""
        if launched_rank() != 0 or not self._is_new:
            return
        has_begun = self.progress.images > self._images_before or self.tested is not None
        if has_begun and (self.done or self._stage not in ("", "frozen") or any(self.folder.rglob("*.ckpt"))):
            return
        self.end_wandb()
        forget()
        shutil.rmtree(self.folder, ignore_errors=True)

    def end_wandb(self) -> None:
        """End the wandb run of a failed run; otherwise wandb would reuse it for the next run of this process."""
        if self.experiment is not None:
            with self.outputs.attempt("the end of the wandb run"):
                self.experiment.finish(exit_code=1)

    @property
    def saves(self) -> bool:
        """Whether the run writes checkpoints."""
        return self.config["trainer"]["enable_checkpointing"] is not False

    def _write_done(self) -> None:
        if launched_rank() == 0 and self.saves:
            write_done(self.folder, self.done)
