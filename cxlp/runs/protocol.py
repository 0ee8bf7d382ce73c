"""What must agree for results to be comparable: one list, for runs that go on, are repeated, or start from another one.

Three kinds of facts are saved with each checkpoint: the recipe (:func:`recipe_of`), the images with their boxes and
labels (:class:`Images`), and the pretrained weights. Each check names the first thing that differs.
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

#: Keys that change no result, or only by rounding; or what they name is compared itself: weights, images, sizes.
_FREE = (
    "model.backbone.weights", "model.frozen.store", "model.recompute", "model.compile",
    "data.root", "data.num_workers", "data.download", "data.batch_size", "data.image_size",
    "data.validation", "data.split_seed", "data.on_broken", "data.table",
)  # fmt: skip
#: Besides these, keys of ``data`` that say which images there are, or what training makes of them: no picture that is
#: scored depends on them.
_TRAINING = ("data.class_path", "data.test_fraction", "data.augment.")


def recipe_of(config: Namespace) -> dict[str, Any]:
    """List what a run's weights and scores depend on besides the images, by key, as plain values.

    Args:
        config: Resolved, see :func:`cxlp.runs.cli.parse`.
    """
    found = {**dict(_leaves("model", _plain(config["model"]))), **dict(_leaves("data", _plain(config["data"])))}
    found = {key: value for key, value in found.items() if key not in _FREE}
    if config["model"]["start"] not in STARTS:
        found["model.start"] = "a checkpoint"  # which may have been moved
    trainer = ("max_epochs", "precision", *(key for key in GRADIENT_TRAINER_KEYS if key != "max_time"))
    found |= {f"trainer.{key}": _plain(config["trainer"][key]) for key in trainer}
    return {**found, "seed_everything": config["seed_everything"]}


def _defaults(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of a recipe's keys of ``model`` and ``data``."""
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
    """The images of a DataModule, in their order.

    Attributes:
        fingerprints: By split, a number for each image, see
            :meth:`~cxlp.data.datamodule.ImageDataModule.fingerprints`.
        marks: Likewise, but for the image with its box and label: what training and scoring see of it.
    """

    fingerprints: dict[str, Tensor]
    marks: dict[str, Tensor]

    @classmethod
    def of(cls, data: ImageDataModule) -> "Images":
        """Look at a DataModule that is set up."""
        splits: tuple[Split, ...] = ("train", "val", "test")
        return cls(*({str(split): data.fingerprints(split, known) for split in splits} for known in (False, True)))

    def all_of(self, splits: Iterable[str]) -> tuple[Tensor, Tensor]:
        """Return the fingerprints and the marks of some splits, joined."""
        names = tuple(splits)
        return torch.cat([self.fingerprints[name] for name in names]), torch.cat([self.marks[name] for name in names])


def check_recipe(saved: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse another recipe than a checkpoint's; keys that it lacks, being older than they, count as their defaults.

    Raises:
        CxlpError: Names the first key that differs.
    """
    if given.keys() - saved.keys():
        saved = {**{key: value for key, value in _defaults(given).items() if key in given}, **saved}
    for key in {**saved, **given}:
        if saved.get(key) != given.get(key):
            raise CxlpError(
                f"{key} is {given.get(key)!r}, but the checkpoint's run had {saved.get(key)!r}: leave it as it was; "
                "--config runs/NAME/config.yaml has all of that run"
            )


def same_run(one: Mapping[str, Any], other: Mapping[str, Any], start: bool = False) -> bool:
    """Whether two checkpoints are of one recipe, but for its length, on the same images and pretrained weights.

    Args:
        one: What is in a checkpoint.
        other: What is in another one, of a run.
        start: The first is what the other's run began with, which has a recipe of its own.
    """
    if "cxlp_run" not in one:
        return False
    runs = [checkpoint["cxlp_run"] for checkpoint in (one, other)]
    facts = [({**run["recipe"], "trainer.max_epochs": None}, run["weights"]) for run in runs]
    marks, others = (run["images"]["marks"] for run in runs)
    splits = ["train"] if start else list(marks)
    return (start or facts[0] == facts[1]) and all(torch.equal(marks[split], others[split]) for split in splits)


def check_images_per_step(saved: int, given: int) -> None:
    """Refuse another number of images per gradient step: the schedule has so many steps.

    Raises:
        CxlpError: If they differ.
    """
    if saved != given:
        raise CxlpError(
            f"a step takes {given} images (data.batch_size x processes x trainer.accumulate_grad_batches), but in the "
            f"checkpoint's run it took {saved}: with other numbers of processes, change the others so that it stays"
        )


def check_classes(saved: Iterable[str], given: Iterable[str]) -> None:
    """Refuse other classes than a checkpoint's, or another order of them.

    Raises:
        CxlpError: If they differ.
    """
    if list(saved) != list(given):
        order = ", or stand in another order," if sorted(saved) == sorted(given) else ""
        raise CxlpError(f"the classes of the data are others{order} than those of the checkpoint's run")


def check_images(saved: Images, given: Images) -> None:
    """Refuse other images, boxes or labels than those of the run that is gone on with.

    Raises:
        CxlpError: Names the first split that differs.
    """
    _check_labels(saved, given)
    for split, what in {"train": "training", "val": "held-out", "test": "test"}.items():
        if not torch.equal(saved.marks[split], given.marks[split]):
            raise CxlpError(
                f"the {what} images are others than those of the checkpoint's run (data.root, validation, split_seed, "
                "test_fraction?): what is held out now may have been trained on. Resume with the run's own configs, "
                "such as --config runs/NAME/config.yaml"
            )


def check_refitted_images(saved: Images, given: Images) -> None:
    """Refuse a refit of other images than those that the choice was made of: training and held-out ones together.

    Raises:
        CxlpError: If they differ.
    """
    _check_labels(saved, given)
    for splits, what in ((("train", "val"), "training"), (("test",), "test")):
        one, other = (torch.unique(images.all_of(splits)[1]) for images in (saved, given))
        if not torch.equal(one, other):
            raise CxlpError(
                f"the {what} images are others than those of the run that has chosen the epoch: give it the same "
                "data.root and the same split"
            )


def check_start(path: Path, saved: Mapping[str, Any], network: Network, recipe: Mapping[str, Any], now: Images) -> None:
    """Refuse to start from a run of another network, or one that saw images otherwise, or has seen the test images.

    Args:
        path: The checkpoint's.
        saved: What is in it.
        network: As built for the run that starts.
        recipe: The recipe of that run.
        now: Its images.

    Raises:
        CxlpError: Says what differs.
    """
    theirs, ours = saved["cxlp"]["network"], network.spec()
    run = saved["cxlp_run"]
    if list(theirs["classes"]) != ours["classes"]:
        raise CxlpError(f"{path} was fitted to other classes than the data has, or in another order")
    for key in ("backbone", "heads", "test_views", "multi_label"):
        if theirs[key] != ours[key]:
            raise CxlpError(
                f"{path} holds another network: its {key} is {theirs[key]}, the model's keys give {ours[key]}. "
                "Give it the keys of that run"
            )
    for key, value in recipe.items():
        if key.startswith("data.") and not key.startswith(_TRAINING) and run["recipe"].get(key, value) != value:
            raise CxlpError(
                f"{key} is {value!r}, but {path} was fitted with {run['recipe'][key]!r}: give both runs the same"
            )
    try:
        _check_labels(Images(**run["images"]), now)
    except CxlpError as error:
        raise CxlpError(f"model.start {path}: {error}") from error
    own = now.fingerprints["train"]
    for split in ("test", "val"):
        images = now.fingerprints[split]
        # What this run trains on anyway is not the start's doing: the data set has such images twice.
        found = int((torch.isin(images, run["seen"]) & ~torch.isin(images, own)).sum())
        if found and split == "test":
            raise CxlpError(f"{path} was trained on {found} of these test images: give it the same split")
        if found:
            print(  # noqa: T201
                f"warning: {path} was trained on {found} of the images that data.validation holds out: they will "
                "flatter it. Fit it with the same data.validation to choose by them"
            )


def _check_labels(saved: Images, given: Images) -> None:
    """Refuse images that both runs have, where their boxes or labels are others.

    Raises:
        CxlpError: Says how many.
    """
    before, after = (images.all_of(images.marks) for images in (saved, given))
    shared = torch.isin(after[0], before[0])
    changed = int((shared & ~torch.isin(after[1], before[1])).sum())
    if changed:
        raise CxlpError(
            f"{changed} images have other labels or boxes than in the checkpoint's run: results of the two cannot be "
            "compared. Give it the lists of that run"
        )


def _plain(value: Any) -> Any:  # noqa: ANN401 (any value of a config)
    """A value as YAML and a checkpoint give it back."""
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
