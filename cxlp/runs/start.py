"""``model.start``: the checkpoint of an earlier run in place of a frozen fit, and what it must agree with."""

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
    """What gradient epochs start from.

    Attributes:
        path: The checkpoint's.
        saved: What is in it.
        validated: What the images that this run holds out say of it; empty: they were not held out.
    """

    path: Path
    saved: dict[str, Any]
    validated: dict[str, float]


def read_start(model: ModelConfig, network: Network, recipe: Mapping[str, Any], images: Images) -> Start:
    """Read the checkpoint that ``model.start`` names.

    Args:
        model: What the run trains.
        network: As built for it.
        recipe: The run's, see :func:`~cxlp.runs.protocol.recipe_of`.
        images: The run's.

    Raises:
        CxlpError: If there is none, it cannot be compared with the run (:func:`~cxlp.runs.protocol.check_start`), or
            lacks what the closing or the cross-fitted stages take from it.
    """
    path = start_checkpoint(model.start)
    saved = read_run(path)
    run = saved["cxlp_run"]
    check_start(path, saved, network, recipe, images)
    folds = saved["cxlp"].get("fold_classifiers")
    if (model.closing_fit and not run["report"]) or (model.cross_fit and folds is None):
        raise CxlpError(
            f"{path} does not hold what model.closing_fit and model.cross_fit take from a frozen fit with the same "
            "options: set model.start: frozen"
        )
    same = torch.equal(run["images"]["marks"]["train"], images.marks["train"])
    if model.cross_fit and not same:
        raise CxlpError(
            f"model.cross_fit scores each image by SVMs that have not seen it, but those of {path} were fitted to "
            "other training images: give it the same data, data.validation and data.split_seed, or set model.start "
            "to frozen"
        )
    return Start(path, saved, saved["cxlp"]["validated"] if same else {})
