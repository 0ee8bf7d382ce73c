"""Test of a saved checkpoint on its own test images, another split, or another data set."""

import json
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from jsonargparse import Namespace
from rich.console import Console

from cxlp.data.datamodule import ImageDataModule
from cxlp.models.checkpoint import network_of, read_checkpoint
from cxlp.reports.outputs import Outputs
from cxlp.reports.page import write_report
from cxlp.reports.result import TestResult
from cxlp.runs.arguments import given_configs, read_yaml
from cxlp.runs.cli import parse, parts_of
from cxlp.runs.evaluation import TestRecorder
from cxlp.runs.launch import launched_rank, settle_launch
from cxlp.runs.loggers import RunConfig
from cxlp.runs.matching import Chosen, choose_images
from cxlp.runs.places import REFIT, run_of, test_arguments
from cxlp.runs.provenance import data_facts, git_state, versions
from cxlp.runs.results import finite, metrics_table
from cxlp.runs.trainers import build_trainer, without_gradients
from cxlp.tasks.base import ClassificationTask
from cxlp.utils.errors import CxlpError
from cxlp.utils.files import find_checkpoint, out_folder, write_whole
from cxlp.utils.processes import leave_with_parent
from cxlp.utils.profiling import PhaseTimes, peak_memory

#: Options of data that do not select images.
_NOT_WHICH = ("batch_size", "num_workers", "augment", "image_size", "aspect", "transform", "on_broken")
#: Options of data that divide images into splits.
_DIVISION = ("validation", "split_seed", "test_fraction")


def retest(given: Path, arguments: Sequence[str], chosen: Chosen | None = None, out: Path | None = None) -> int:
    """Test a checkpoint, write the same files as the test of a run, and print the table of metrics.

    Args:
        given: A checkpoint, or the folder of a run, whose tested checkpoint is used.
        arguments: Arguments of ``train.py``, added to those of the checkpoint's run if it is in a run's folder. Keys of
            ``data`` choose other images, keys of ``trainer`` the device.
        chosen: The images to test; ``None``: ``test``, or ``all`` for other data without a test split.
        out: The output folder; ``None``: a new folder beside the run's folder.

    Returns:
        The exit status: 0, or 3 if an output could not be written; stderr names that output.

    Raises:
        CxlpError: If the data set is unknown or does not fit the checkpoint, or if ``out`` contains anything but an
            earlier test of this checkpoint.
    """
    path = find_checkpoint(given)
    saved = read_checkpoint(path)
    config = parse(test_arguments(path, arguments))
    _forget_options_of_other_data(config, path, arguments)
    settle_launch(config["trainer"])
    leave_with_parent()
    pl.seed_everything(config["seed_everything"], workers=True)  # images may be held out by this seed
    network = network_of(saved, None, str(path))
    data: ImageDataModule = parts_of(config)["data"]
    notes = _use_preprocessing(data, saved, arguments)
    data.prepare_data()
    is_own = _is_own(path, config)
    held = saved["cxlp_run"]["images"]["marks"] if is_own and "cxlp_run" in saved else {}
    chosen, told = choose_images(data, network, "test" if chosen is None and is_own else chosen, held)
    notes += told
    trained = 0
    if "cxlp_run" in saved and (arguments or chosen != "test"):
        trained = int(torch.isin(data.fingerprints("test"), saved["cxlp_run"]["seen"]).sum())
        notes += [f"warning: {trained:,} of these images were trained on"] if trained else []
    boxes = any(sample.box is not None for sample in data.splits["test"].samples)
    if saved["cxlp"].get("image", {}).get("boxes") and not boxes:
        notes.append("warning: the network was trained on images cropped to boxes, but these images are used whole")
    folder = _folder(path, out, data, chosen)
    if data.broken:
        notes.append(f"warning: {len(data.broken):,} broken files are left out: {folder / 'broken.txt'}")
    if launched_rank() == 0:
        for note in notes:
            print(note, file=sys.stderr)  # noqa: T201
    data.progress = config["trainer"]["enable_progress_bar"] is not False
    recorder = TestRecorder(data, RunConfig(**config["run"].as_dict()).predictions)
    # The precision of its validation, to reproduce its own test; checkpoints of plain Trainers do not store it.
    precision = None if _is_given(arguments, "trainer.precision") else saved.get("cxlp_run", {}).get("precision")
    precision = precision or without_gradients(config["trainer"]).name
    task = ClassificationTask(network)
    task.times = PhaseTimes()
    with out_folder(folder) if launched_rank() == 0 else nullcontext(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the test's metrics cover")  # the notes already name classes without images
        trainer = build_trainer(config, "test", folder, [recorder], [], None, refit=False, precision=precision)
        (tested,) = trainer.test(task, data, verbose=False)
        if not trainer.is_global_zero:
            return 0
        assert recorder.result is not None
        summary: dict[str, Any] = {
            "metrics": {key: value for key, value in tested.items() if key.startswith("test/")},
            "seconds": dict(task.times),
            "tested": str(path),
            "test_of": str(path.absolute()),
            "images": {chosen: len(data.splits["test"])},
            "trained_on": trained,
            "memory": peak_memory(),
            "network": {
                "backbone": network.backbone.name,
                "head": " + ".join(head.name for head in network.each_head()),
            },
        }
        return _write(folder, summary, data, recorder.result)


def _write(folder: Path, summary: dict[str, Any], data: ImageDataModule, result: TestResult) -> int:
    """Write all outputs of a test, print its table, and return the exit status."""
    outputs = Outputs()
    if data.left_out:
        summary["left_out"] = dict(data.left_out)
    folder.mkdir(parents=True, exist_ok=True)
    if data.broken:
        write_whole(folder / "broken.txt", "\n".join(sorted(data.broken.values())) + "\n")
    with outputs.attempt("the confidence intervals"):
        summary["intervals"] = {name: found._asdict() for name, found in result.intervals().items()}
    _save(folder / "metrics.json", summary)
    with outputs.attempt("provenance.json"):
        _save(folder / "provenance.json", {"data": data_facts(data), "git": git_state(), "versions": versions()})
    result.write(folder, outputs)
    with outputs.attempt("report.html"):
        write_report(folder)
    _save(folder / "metrics.json", {**summary, "outputs": {"failed": outputs.failed}})
    console = Console(markup=False)
    title = f"{data.name}: {len(data.splits['test'])} images ({', '.join(summary['images'])})"
    console.print(metrics_table(title, summary["metrics"], summary.get("intervals", {})))
    console.print(f"Everything is in {folder} (tested: {summary['tested']})", soft_wrap=True)
    return 3 if outputs.failed else 0


def _is_own(path: Path, config: Namespace) -> bool:
    """Whether the data set is the one of the checkpoint's run, regardless of its splits."""
    if run_of(path) is None:
        return False
    both = []
    for data in (config["data"], parse(test_arguments(path, []))["data"]):
        options = data["init_args"].as_dict()
        both.append((data["class_path"], {k: v for k, v in options.items() if k not in (*_NOT_WHICH, *_DIVISION)}))
    return both[0] == both[1]


def _is_given(arguments: Sequence[str], key: str) -> bool:
    """Whether an argument sets a key or one of its subkeys."""
    names = [arg.partition("=")[0] for arg in arguments]
    return any(name == f"--{key}" or name.startswith((f"--{key}.", f"--{key}+")) for name in names)


def _forget_options_of_other_data(config: Namespace, path: Path, arguments: Sequence[str]) -> None:
    """Reset options that select images to their defaults if the data set is not the run's.

    When the class of the data changes, the parser keeps options of the same name, such as ``root``.
    """
    if run_of(path) is None or config["data"]["class_path"] == parse(test_arguments(path, []))["data"]["class_path"]:
        return
    configs = [read_yaml(str(file)).get("data") for file in given_configs(arguments)]
    named = {name for data in configs if isinstance(data, dict) for name in (data.get("init_args") or data)}
    own = parse(["--data", config["data"]["class_path"]])["data"]["init_args"]
    for name in set(vars(own)) - named - {*_NOT_WHICH}:
        if not _is_given(arguments, f"data.{name}") and not _is_given(arguments, f"data.init_args.{name}"):
            config["data"]["init_args"][name] = own[name]


def _use_preprocessing(data: ImageDataModule, saved: Mapping[str, Any], arguments: Sequence[str]) -> list[str]:
    """Use the transform and the aspect of the checkpoint's run.

    Returns:
        Notes to print if the user's config asks for different values.

    Raises:
        CxlpError: If the user's command line asks for different values.
    """
    notes, image = [], saved["cxlp"].get("image", {})
    for key in ("aspect", "transform"):
        given = getattr(data, key)
        known = image.get(key, given)
        known = known if key == "aspect" else tuple(known)
        if given != known:
            said = f"data.{key} is {given}, but the checkpoint's run had {known}"
            if _is_given(arguments, f"data.{key}"):
                raise CxlpError(f"{said}: remove it")
            notes.append(f"note: {said}, which is used here as well")
        setattr(data, key, known)
    return notes


def _folder(path: Path, out: Path | None, data: ImageDataModule, chosen: Chosen) -> Path:
    """The output folder: ``out``, if empty or from an earlier test of this checkpoint, or a new one.

    Raises:
        CxlpError: If ``out`` contains anything else.
    """
    if out is not None:
        if (out / "config.yaml").exists() or (out / "checkpoints").exists():
            raise CxlpError(f"--out {out} is a run's own folder, whose results must be kept: name another folder")
        if launched_rank() == 0 and out.is_dir() and any(out.iterdir()) and not _is_test_of(path, out):
            raise CxlpError(f"--out {out} is not empty and contains no test of this checkpoint: name another folder")
        return out
    run = run_of(path)
    place = path.parent / path.stem if run is None else path.parent.parent
    place = place.parent if run is not None and place.name == REFIT else place
    name = f"{place.name}-on-{re.sub(r'[^A-Za-z0-9.]+', '-', data.name).strip('-').lower()}-{chosen}"
    names = (place.with_name(name if n == 1 else f"{name}-{n}") for n in range(1, 10_000))
    return next(folder for folder in names if not folder.exists())


def _is_test_of(path: Path, folder: Path) -> bool:
    try:
        found = json.loads((folder / "metrics.json").read_text())
        return bool(found["test_of"] == str(path.absolute()))
    except (OSError, ValueError, LookupError, TypeError):  # the file is missing or is not from a test
        return False


def _save(path: Path, content: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(finite(content), indent=2, allow_nan=False) + "\n")
