"""``model.start``: the checkpoint of an earlier run that replaces the frozen fit, and its checks."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cxlp.models.network import Network
from cxlp.runs.folder import read_run
from cxlp.runs.places import start_checkpoint
from cxlp.runs.protocol import Images, check_start
from cxlp.runs.recipe import ModelConfig
from cxlp.utils.errors import CxlpError


@dataclass(frozen=True)
class Start:
    """The checkpoint that gradient epochs start from.

    Attributes:
        path: Path of the checkpoint.
        saved: Content of the checkpoint.
        validated: Its validation metrics; empty if they were measured on other images than this run holds out.
    """

    path: Path
    saved: dict[str, Any]
    validated: dict[str, float]


def read_start(model: ModelConfig, network: Network, recipe: Mapping[str, Any], images: Images) -> Start:
    """Read the checkpoint that ``model.start`` names.

    Args:
        model: The model options of the run.
        network: The network of the run.
        recipe: The recipe of the run, see :func:`~cxlp.runs.protocol.recipe_of`.
        images: The images of the run.

    Raises:
        CxlpError: If there is no such checkpoint, it does not agree with the run
            (:func:`~cxlp.runs.protocol.check_start`), or it lacks what ``closing_fit`` or ``cross_fit`` needs.
    """
    path = start_checkpoint(model.start)
    saved = read_run(path)
    run = saved["cxlp_run"]
    check_start(path, saved, network, recipe, images)
    folds = saved["cxlp"].get("fold_classifiers")
    if (model.closing_fit and not run["report"]) or (model.cross_fit and folds is None):
        raise CxlpError(
            f"{path} lacks results of a frozen fit that model.closing_fit and model.cross_fit need: set model.start to "
            "frozen"
        )
    same = torch.equal(run["images"]["marks"]["train"], images.marks["train"])
    if model.cross_fit and not same:
        raise CxlpError(
            f"model.cross_fit needs SVMs that were not fitted to the image that they score, but those of {path} belong "
            "to other training images: give the same data, data.validation and data.split_seed, or set model.start to "
            "frozen"
        )
    return Start(path, saved, saved["cxlp"]["validated"] if same else {})
