"""``model.start``: the checkpoint of an earlier run in place of a frozen fit, and what it must agree with."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cxlp.data.datamodule import ImageDataModule
from cxlp.models.network import Network
from cxlp.runs.folder import read_run
from cxlp.runs.recipe import ModelConfig
from cxlp.utils.errors import CxlpError


@dataclass(frozen=True)
class Start:
    """What gradient epochs start from.

    Attributes:
        path: The checkpoint's.
        saved: What is in it.
        validated: What the images that this run holds out say of it; empty: they were not held out, or seen otherwise.
    """

    path: Path
    saved: dict[str, Any]
    validated: dict[str, float]


def read_start(model: ModelConfig, network: Network, data: ImageDataModule, recipe: Mapping[str, Any]) -> Start:
    """Read the checkpoint that ``model.start`` names.

    Args:
        model: Of the run.
        network: As built for it.
        data: Set up.
        recipe: The run's, see :func:`~cxlp.runs.recipe.recipe_of`.

    Raises:
        CxlpError: If there is none, it is of another network, was trained on test images, or lacks what the closing or
            the cross-fitted stages take from it.
    """
    path = Path(model.start)
    path = path / "checkpoints" / "best.ckpt" if path.is_dir() else path
    if not path.is_file():
        raise CxlpError(
            f"model.start is {model.start!r}: expected frozen, projection, scratch, or the path of a "
            "checkpoint or of a run's folder"
        )
    saved = read_run(path)
    run = saved["cxlp_run"]
    _check_network(path, saved["cxlp"]["network"], network.spec())
    _check_overlap(path, run["seen"], data)
    folds = saved["cxlp"].get("fold_classifiers")
    if (model.closing_fit and not run["report"]) or (model.cross_fit and folds is None):
        raise CxlpError(
            f"{path} does not hold what model.closing_fit and model.cross_fit take from a frozen fit with the same "
            "options: set model.start: frozen"
        )
    same = torch.equal(run["trained_on"], data.fingerprints("train", labelled=True))
    if model.cross_fit and not same:
        raise CxlpError(
            f"model.cross_fit scores each image by SVMs that have not seen it, but those of {path} were fitted to "
            "other training images: give it the same data, data.validation and data.split_seed, or set model.start "
            "to frozen"
        )
    alike = all(run["recipe"].get(key) == value for key, value in recipe.items() if key.startswith("data."))
    return Start(path, saved, saved["cxlp"]["validated"] if same and alike else {})


def _check_network(path: Path, saved: Mapping[str, Any], described: Mapping[str, Any]) -> None:
    """Refuse another network than the model's keys describe."""
    if list(saved["classes"]) != described["classes"]:
        raise CxlpError(f"{path} was fitted to other classes than the data has")
    for key in ("backbone", "heads", "test_views", "multi_label"):
        if saved[key] != described[key]:
            raise CxlpError(
                f"{path} holds another network: its {key} is {saved[key]}, the model's keys give {described[key]}. "
                "Give it the keys of that run"
            )


def _check_overlap(path: Path, seen: torch.Tensor, data: ImageDataModule) -> None:
    """Refuse to test on what the earlier run was trained on; warn where validation is."""
    for split in ("test", "val"):
        found = data.count_seen(split, seen)
        if found and split == "test":
            raise CxlpError(f"{path} was trained on {found} of these test images: give it the same split")
        if found:
            print(  # noqa: T201
                f"warning: {path} was trained on {found} of the images that data.validation holds out: they will "
                "flatter it. Fit it with the same data.validation to choose by them"
            )
