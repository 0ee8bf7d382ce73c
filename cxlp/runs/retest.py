"""A checkpoint tested once more: on its own test images, on another split, or on another data set with its classes."""

import json
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from cxlp.data.datamodule import ImageDataModule
from cxlp.data.dataset import Sample
from cxlp.models.checkpoint import network_of, read_checkpoint
from cxlp.models.network import Network
from cxlp.reports.outputs import Outputs
from cxlp.reports.page import write_report
from cxlp.runs.cli import parse, parts_of
from cxlp.runs.evaluation import TestRecorder
from cxlp.runs.launch import launched_rank, settle_launch
from cxlp.runs.loggers import RunConfig
from cxlp.runs.provenance import data_facts, git_state, versions
from cxlp.runs.results import finite, metrics_table
from cxlp.runs.trainers import build_trainer, without_gradients
from cxlp.tasks.base import ClassificationTask
from cxlp.utils.errors import CxlpError
from cxlp.utils.files import find_checkpoint, write_whole
from cxlp.utils.processes import leave_with_parent
from cxlp.utils.profiling import PhaseTimes, peak_memory

#: Which images are tested.
Chosen = Literal["train", "val", "test", "all"]
#: One process and no logs, whatever the run had; later arguments may say otherwise.
_ALONE = {
    "trainer.accelerator": "auto", "trainer.devices": "1", "trainer.num_nodes": "1", "trainer.strategy": "auto",
    "trainer.logger": "false",
}  # fmt: skip


def retest(given: Path, arguments: Sequence[str], chosen: Chosen = "test", out: Path | None = None) -> int:
    """Test a checkpoint; write what a run leaves of its test, and print the table.

    Args:
        given: A checkpoint, or the folder of a run, whose tested one is meant.
        arguments: As for ``train.py``, behind those of the checkpoint's run, if it lies in its folder: keys of ``data``
            choose other images, keys of ``trainer`` the device.
        chosen: Which images.
        out: The folder to write into; ``None``: a new one beside the run's.

    Returns:
        The exit status: 0; 3 if an output is missing, which stderr names.

    Raises:
        CxlpError: If the data cannot be told or do not fit the checkpoint, or ``out`` is a run's own folder.
    """
    path = find_checkpoint(given)
    saved = read_checkpoint(path)
    config = parse(_arguments(path, arguments))
    settle_launch(config["trainer"])
    leave_with_parent()
    network = network_of(saved, None, str(path))
    data: ImageDataModule = parts_of(config)["data"]
    _settle_pictures(data, saved, arguments)
    data.prepare_data()
    notes = choose_images(data, network, chosen)
    if arguments and chosen != "train" and "cxlp_run" in saved:
        trained = int(torch.isin(data.fingerprints("test"), saved["cxlp_run"]["seen"]).sum())
        notes += [f"warning: {trained:,} of these images were trained on"] if trained else []
    boxes = any(sample.box is not None for sample in data.splits["test"].samples)
    if saved["cxlp"].get("image", {}).get("boxes") and not boxes:
        notes.append("warning: the network was trained on images cropped to boxes; these are taken whole")
    folder = _folder(path, out, data, chosen)
    if data.broken:
        notes.append(f"warning: {len(data.broken):,} broken files are left out: {folder / 'broken.txt'}")
    if launched_rank() == 0:
        for note in notes:
            print(note, file=sys.stderr)  # noqa: T201
    data.progress = config["trainer"]["enable_progress_bar"] is not False
    recorder = TestRecorder(data, RunConfig(**config["run"].as_dict()).predictions)
    # As it was validated, so that its own test comes out the same; a checkpoint of a plain Trainer does not tell.
    precision = saved.get("cxlp_run", {}).get("precision") or without_gradients(config["trainer"]).name
    trainer = build_trainer(config, "test", folder, [recorder], [], None, refit=False, precision=precision)
    task = ClassificationTask(network)
    task.times = PhaseTimes()
    (tested,) = trainer.test(task, data, verbose=False)
    if not trainer.is_global_zero:
        return 0
    assert recorder.result is not None
    outputs = Outputs()
    summary: dict[str, Any] = {
        "metrics": {key: value for key, value in tested.items() if key.startswith("test/")},
        "seconds": dict(task.times),
        "tested": str(path),
        "test_of": str(path.absolute()),
        "images": {chosen: len(data.splits["test"])},
        "memory": peak_memory(),
        "network": {"backbone": network.backbone.name, "head": " + ".join(head.name for head in network.each_head())},
    }
    if data.left_out:
        summary["left_out"] = dict(data.left_out)
    folder.mkdir(parents=True, exist_ok=True)
    if data.broken:
        write_whole(folder / "broken.txt", "\n".join(sorted(data.broken.values())) + "\n")
    with outputs.attempt("the intervals of confidence"):
        summary["intervals"] = {name: found._asdict() for name, found in recorder.result.intervals().items()}
    _save(folder / "metrics.json", summary)
    with outputs.attempt("provenance.json"):
        _save(folder / "provenance.json", {"data": data_facts(data), "git": git_state(), "versions": versions()})
    recorder.result.write(folder, outputs)
    with outputs.attempt("report.html"):
        write_report(folder)
    _save(folder / "metrics.json", {**summary, "outputs": {"failed": outputs.failed}})
    console = Console(markup=False)
    title = f"{data.name}: {len(data.splits['test'])} images ({chosen})"
    console.print(metrics_table(title, summary["metrics"], summary.get("intervals", {})))
    console.print(f"Everything is in {folder} (tested: {path})", soft_wrap=True)
    return 3 if outputs.failed else 0


def choose_images(data: ImageDataModule, network: Network, chosen: Chosen) -> list[str]:
    """Make some images of a DataModule its test split, labelled by the network's classes.

    Classes are matched by their names: as they are or, where that is one to one, without case, leading numbers and
    underscores. Images of classes that the network does not know are left out; of several labels, theirs are.

    Args:
        data: Not set up yet.
        network: What is to be tested.
        chosen: Which images.

    Returns:
        What to tell of the match, a line each.

    Raises:
        CxlpError: If there are no such images, or none of the network's classes.
    """
    if chosen in ("train", "val"):  # as the run has held out
        data.setup()
        classes, samples = data.classes, list(data.splits[chosen].samples)
    else:
        classes, content = data.read_usable()
        samples = [sample for split, part in content.items() if chosen in ("all", split) for sample in part]
    if not samples:
        held = ": none are held out (data.validation)" if chosen == "val" else ""
        raise CxlpError(f"{data.name} has no images for --split {chosen}{held}")
    several = not isinstance(samples[0].label, int)
    if several != network.multi_label:
        kinds = ("one label per image", "several labels per image")
        raise CxlpError(f"{data.name} has {kinds[several]}, but the checkpoint's network takes {kinds[not several]}")
    places = match_classes(classes, network.classes)
    kept = [relabelled for s in samples if (relabelled := _relabel(s, places, len(network.classes))) is not None]
    if not kept:
        raise CxlpError(
            f"{data.name} has no image of the network's classes ({', '.join(network.classes[:3])}, ...): its own are "
            f"{', '.join(classes[:3])}, ..."
        )
    data.classes = network.classes
    data.splits = {"test": data.dataset(kept, network.classes)}
    data.left_out = Counter(data.left_out)
    notes = []
    if missing := [name for k, name in enumerate(network.classes) if k not in places.values()]:
        notes.append(f"note: the data have none of {len(missing)} of {len(network.classes)} classes: {_some(missing)}")
    if unknown := [name for k, name in enumerate(classes) if k not in places]:
        count = len(samples) - len(kept)
        notes.append(f"note: {len(unknown)} classes are not the network's: {_some(unknown)}")
        if count:
            data.left_out["of classes that the network does not know"] += count
            notes.append(f"note: {count:,} images are left out, of these classes")
    return notes


def match_classes(theirs: Sequence[str], ours: Sequence[str]) -> dict[int, int]:
    """Match the classes of data with a network's, see :func:`choose_images`: places of the former -> the latter."""
    known = {name: k for k, name in enumerate(ours)}
    found = {k: known[name] for k, name in enumerate(theirs) if name in known}
    left: list[dict[str, list[int]]] = [{}, {}]
    for side, (names, taken) in enumerate(((theirs, found.keys()), (ours, set(found.values())))):
        for k, name in enumerate(names):
            if k not in taken:
                left[side].setdefault(_simple(name), []).append(k)
    for name, places in left[0].items():
        others = left[1].get(name, [])
        if len(places) == len(others) == 1:
            found[places[0]] = others[0]
    return found


def _simple(name: str) -> str:
    return re.sub(r"^\d+[._\s-]+", "", name).replace("_", " ").replace("-", " ").strip().casefold()


def _relabel(sample: Sample, places: Mapping[int, int], classes: int) -> Sample | None:
    if isinstance(sample.label, int):
        return sample._replace(label=places[sample.label]) if sample.label in places else None
    row = [0] * classes
    for k, value in enumerate(sample.label):
        if k in places:
            row[places[k]] = value
    return sample._replace(label=tuple(row))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _run_of(path: Path) -> Path | None:
    """The folder of the run that a checkpoint lies in."""
    folder = path.absolute().parent.parent
    return folder if path.absolute().parent.name == "checkpoints" and (folder / "config.yaml").is_file() else None


def _arguments(path: Path, given: Sequence[str]) -> list[str]:
    """Put the arguments of the checkpoint's run before those that were given."""
    run = _run_of(path)
    if run is None and not any(arg.split("=")[0] in ("-c", "--config", "--data") for arg in given):
        raise CxlpError(
            f"{path} does not lie in a run's folder, which would tell its data: name them, such as "
            "--config cub200.yaml or --data folder --data.root DIR"
        )
    configs = [] if run is None else [run / "config-resumed.yaml", run / "config.yaml"]
    own = next((["--config", str(config)] for config in configs if config.is_file()), [])
    alone = [part for key, value in _ALONE.items() for part in (f"--{key}", value)]
    return [*own, *alone, "--ckpt_path", "null", *given]


def _settle_pictures(data: ImageDataModule, saved: Mapping[str, Any], arguments: Sequence[str]) -> None:
    """Change pictures, and make them square, as the checkpoint's run did.

    Raises:
        CxlpError: If the user has asked for another way.
    """
    aspect = saved["cxlp"].get("image", {}).get("aspect", data.aspect)
    if data.aspect != aspect and any(arg.split("=")[0] == "--data.aspect" for arg in arguments):
        raise CxlpError(f"data.aspect is {data.aspect}, but the checkpoint's run had {aspect}: leave it out")
    data.aspect, data.transform = aspect, tuple(saved["cxlp"].get("image", {}).get("transform", data.transform))


def _folder(path: Path, out: Path | None, data: ImageDataModule, chosen: Chosen) -> Path:
    """The folder to write into, never a run's own.

    Raises:
        CxlpError: If it is one, or a file.
    """
    if out is not None:
        if (out / "config.yaml").exists() or (out / "checkpoints").exists():
            raise CxlpError(f"--out {out} is a run's own folder, whose results stay: name another one")
        if out.exists() and not out.is_dir():
            raise CxlpError(f"--out {out} is a file: name a folder")
        return out
    run = _run_of(path)
    place = path.parent / path.stem if run is None else path.parent.parent
    name = f"{place.name}-on-{re.sub(r'[^A-Za-z0-9.]+', '-', data.name).strip('-').lower()}-{chosen}"
    names = (place.with_name(name if n == 1 else f"{name}-{n}") for n in range(1, 10_000))
    return next(folder for folder in names if not folder.exists())


def _save(path: Path, content: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(finite(content), indent=2, allow_nan=False) + "\n")
