"""Checks that runs are comparable, for runs that are resumed, repeated, or started from another run.

Three kinds of facts are saved with each checkpoint: the recipe (:func:`recipe_of`), the images with their boxes and
labels (:class:`Images`), and the pretrained weights. Each check names the first difference.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from cxlp.data.datamodule import ImageDataModule
from cxlp.data.dataset import Split
from cxlp.models.network import Network
from cxlp.runs.places import STARTS
from cxlp.runs.recipe import GRADIENT_TRAINER_KEYS
from cxlp.utils.errors import CxlpError
from cxlp.utils.importing import import_object

#: Keys that affect results at most by rounding, or whose content is compared directly: weights, images, sizes.
_FREE = (
    "model.backbone.weights", "model.frozen.store", "model.recompute", "model.compile",
    "data.root", "data.num_workers", "data.download", "data.batch_size", "data.image_size",
    "data.validation", "data.split_seed", "data.on_broken", "data.table",
)  # fmt: skip
#: Further keys of ``data`` that select images or affect training only: the pixels of scored images do not depend on
#: them.
_TRAINING = ("data.class_path", "data.test_fraction", "data.augment.")


def recipe_of(config: Namespace) -> dict[str, Any]:
    """List the keys that a run's weights and scores depend on, besides the images, with plain values.

    Args:
        config: The resolved config, see :func:`cxlp.runs.cli.parse`.
    """
    found = {**dict(_leaves("model", _plain(config["model"]))), **dict(_leaves("data", _plain(config["data"])))}
    found = {key: value for key, value in found.items() if key not in _FREE}
    if config["model"]["start"] not in STARTS:
        found["model.start"] = "a checkpoint"  # its path is not compared, since it may have been moved
    trainer = ("max_epochs", "precision", *(key for key in GRADIENT_TRAINER_KEYS if key != "max_time"))
    found |= {f"trainer.{key}": _plain(config["trainer"][key]) for key in trainer}
    return {**found, "seed_everything": config["seed_everything"]}


def _defaults(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of the keys of ``model`` and ``data`` in a recipe."""
    classes = {"model": "cxlp.runs.recipe.ModelConfig"}
    classes |= {
        place: recipe[f"{place}.class_path"] for place in ("model.head", "data") if f"{place}.class_path" in recipe
    }
    found: dict[str, Any] = {}
    for place, path in classes.items():
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(import_object(path, place))
        found |= _leaves(place, _plain(parser.get_defaults()))
    return found


@dataclass(frozen=True)
class Images:
    """The images of a DataModule, in order.

    Attributes:
        fingerprints: For each split, one number per image, see
            :meth:`~cxlp.data.datamodule.ImageDataModule.fingerprints`.
        marks: For each split, one number per image together with its box and label.
    """

    fingerprints: dict[str, Tensor]
    marks: dict[str, Tensor]

    @classmethod
    def of(cls, data: ImageDataModule) -> "Images":
        """Compute fingerprints and marks of a DataModule that is set up."""
        splits: tuple[Split, ...] = ("train", "val", "test")
        return cls(*({str(split): data.fingerprints(split, known) for split in splits} for known in (False, True)))

    def all_of(self, splits: Iterable[str]) -> tuple[Tensor, Tensor]:
        """Return the fingerprints and the marks of several splits, concatenated."""
        names = tuple(splits)
        return torch.cat([self.fingerprints[name] for name in names]), torch.cat([self.marks[name] for name in names])


def check_recipe(saved: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Reject a recipe that differs from a checkpoint's; keys missing there count as defaults.

    Raises:
        CxlpError: If the recipes differ; names the first key that differs.
    """
    if given.keys() - saved.keys():
        saved = {**{key: value for key, value in _defaults(given).items() if key in given}, **saved}
    for key in {**saved, **given}:
        if saved.get(key) != given.get(key):
            raise CxlpError(
                f"{key} is {given.get(key)!r}, but the checkpoint's run had {saved.get(key)!r}: use that value, or the "
                "run's whole config, --config runs/NAME/config.yaml"
            )


def same_run(one: Mapping[str, Any], other: Mapping[str, Any], start: bool = False) -> bool:
    """Whether two checkpoints have the same recipe (except its length), images and pretrained weights.

    Args:
        one: Content of a checkpoint.
        other: Content of another checkpoint, written by a run.
        start: Whether the other run started from the first checkpoint (``model.start``), whose recipe may differ.
    """
    if "cxlp_run" not in one:
        return False
    runs = [checkpoint["cxlp_run"] for checkpoint in (one, other)]
    facts = [({**run["recipe"], "trainer.max_epochs": None}, run["weights"]) for run in runs]
    marks, others = (run["images"]["marks"] for run in runs)
    splits = ["train"] if start else list(marks)
    return (start or facts[0] == facts[1]) and all(torch.equal(marks[split], others[split]) for split in splits)


def check_images_per_step(saved: int, given: int) -> None:
    """Reject a different global batch size, which would change the number of steps of the schedule.

    Raises:
        CxlpError: If the numbers of images per step differ.
    """
    if saved != given:
        raise CxlpError(
            f"the global batch size (data.batch_size x processes x trainer.accumulate_grad_batches) is {given}, but "
            f"the checkpoint's run had {saved}: with another number of processes, adapt the other two factors"
        )


def check_classes(saved: Iterable[str], given: Iterable[str]) -> None:
    """Reject classes that differ from a checkpoint's, or are in another order.

    Raises:
        CxlpError: If the classes differ.
    """
    if list(saved) != list(given):
        order = " in their order" if sorted(saved) == sorted(given) else ""
        raise CxlpError(f"the classes of the data differ{order} from those of the checkpoint's run")


def check_images(saved: Images, given: Images) -> None:
    """Reject images, boxes or labels that differ from those of the resumed run.

    Raises:
        CxlpError: If they differ; names the first split that differs.
    """
    _check_labels(saved, given)
    for split, what in {"train": "training", "val": "held-out", "test": "test"}.items():
        if not torch.equal(saved.marks[split], given.marks[split]):
            raise CxlpError(
                f"the {what} images differ from those of the checkpoint's run (data.root, validation, split_seed, "
                "test_fraction?), so held-out images may have been trained on. Resume with the run's own config, "
                "--config runs/NAME/config.yaml"
            )


def check_refitted_images(saved: Images, given: Images) -> None:
    """Reject a refit on other images than the choosing run's training and held-out images together.

    Raises:
        CxlpError: If the images differ.
    """
    _check_labels(saved, given)
    for splits, what in ((("train", "val"), "training"), (("test",), "test")):
        one, other = (torch.unique(images.all_of(splits)[1]) for images in (saved, given))
        if not torch.equal(one, other):
            raise CxlpError(
                f"the {what} images differ from those of the run that chose the epoch: give the same data.root and the "
                "same split"
            )


def check_start(path: Path, saved: Mapping[str, Any], network: Network, recipe: Mapping[str, Any], now: Images) -> None:
    """Reject a start from a run with another network or preprocessing, or trained on test images.

    Args:
        path: Path of the start checkpoint.
        saved: Content of that checkpoint.
        network: The network of the new run.
        recipe: The recipe of the new run.
        now: The images of the new run.

    Raises:
        CxlpError: If the runs do not agree; names the difference.
    """
    theirs, ours = saved["cxlp"]["network"], network.spec()
    run = saved["cxlp_run"]
    if list(theirs["classes"]) != ours["classes"]:
        raise CxlpError(f"{path} was fitted to classes that differ from those of the data, or to another order of them")
    for key in ("backbone", "heads", "test_views", "multi_label"):
        if theirs[key] != ours[key]:
            raise CxlpError(
                f"{path} contains a different network: its {key} is {theirs[key]}, but the config gives {ours[key]}. "
                "Use the model keys of that run"
            )
    for key, value in recipe.items():
        if key.startswith("data.") and not key.startswith(_TRAINING) and run["recipe"].get(key, value) != value:
            raise CxlpError(
                f"{key} is {value!r}, but {path} was fitted with {run['recipe'][key]!r}: use the same value"
            )
    try:
        _check_labels(Images(**run["images"]), now)
    except CxlpError as error:
        raise CxlpError(f"model.start {path}: {error}") from error
    own = now.fingerprints["train"]
    for split in ("test", "val"):
        images = now.fingerprints[split]
        # Ignore images that this run trains on as well: they are duplicates within the data set.
        found = int((torch.isin(images, run["seen"]) & ~torch.isin(images, own)).sum())
        if found and split == "test":
            raise CxlpError(f"{path} was trained on {found} of these test images: give both runs the same split")
        if found:
            print(  # noqa: T201
                f"warning: {path} was trained on {found} of the images that data.validation holds out: validation "
                "metrics will be too optimistic. Fit it with the same data.validation"
            )


def _check_labels(saved: Images, given: Images) -> None:
    """Reject different boxes or labels of images that both runs share.

    Raises:
        CxlpError: If boxes or labels differ; states the number of such images.
    """
    before, after = (images.all_of(images.marks) for images in (saved, given))
    shared = torch.isin(after[0], before[0])
    changed = int((shared & ~torch.isin(after[1], before[1])).sum())
    if changed:
        raise CxlpError(
            f"{changed} images have different labels or boxes than in the checkpoint's run, so the runs cannot be "
            "compared: use the lists of that run"
        )


def _plain(value: Any) -> Any:  # noqa: ANN401 (any value of a config)
    """Convert a value to what YAML or a checkpoint would return for it."""
    if isinstance(value, Namespace):
        value = value.as_dict()
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 (plain values)
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _leaves(prefix if key == "init_args" else f"{prefix}.{key}", part)
    else:
        yield prefix, value
