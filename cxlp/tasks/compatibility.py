"""What a run and the checkpoint that it goes on from, or repeats, must agree in."""

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from cxlp.models.network import Network, NetworkConfig
from cxlp.utils.errors import CxlpError

#: What a checkpoint holds as ``cxlp``, see :meth:`cxlp.tasks.base.CrossLayerTask.on_save_checkpoint`.
Saved = Mapping[str, Any]


def check_network(saved: Saved, task: str, network: Network) -> None:
    """Refuse another mode, network, or other classes.

    Raises:
        CxlpError: Names the first key that differs.
    """
    check_same("model.class_path", saved["task"], task)
    theirs, ours = saved["network"], network.spec()
    # With the defaults of what came later than the checkpoint.
    config = asdict(NetworkConfig.from_values(theirs["config"]))
    for part in ("backbone", "pooling"):
        for key in ours["config"][part].keys() - {"weights"}:  # they come from the checkpoint
            check_same(f"model.network.{part}.{key}", config[part][key], ours["config"][part][key])
    for part in ("also", "test_views"):
        check_same(f"model.network.{part}", config[part], ours["config"][part])
    check_same("multi_label of the data", theirs["multi_label"], ours["multi_label"])
    check_same("the classes of the data", theirs["classes"], ours["classes"])


def check_recipe(saved: Saved, recipe: Mapping[str, Any], frozen_epochs: Collection[int]) -> None:
    """Refuse another way to the weights.

    Args:
        saved: Of the checkpoint.
        recipe: This run's; what is not in it may differ.
        frozen_epochs: This run's.

    Raises:
        CxlpError: Names the first key that differs.
    """
    for key, value in recipe.items():
        check_same(key, saved["recipe"].get(key), value)
    theirs, ours = (", ".join(map(str, sorted(e))) or "none" for e in (saved["frozen_epochs"], frozen_epochs))
    if theirs != ours:
        raise CxlpError(
            f"the checkpoint's run fits without gradients in epochs {theirs}, this one in epochs {ours}: give the "
            "same trainer.max_epochs, after which model.closing_fit comes"
        )


def check_images(saved: Saved, fingerprints: Tensor) -> None:
    """Refuse other training images.

    Args:
        saved: Of the checkpoint.
        fingerprints: Of this run's training images.

    Raises:
        CxlpError: Says why.
    """
    if not torch.equal(fingerprints, saved["trained_on"]):
        raise CxlpError(
            "the training images are others than those of the checkpoint's run (data.root, validation, split_seed, "
            "test_fraction?): what is held out now may have been trained on. Resume with the run's own configs, "
            "such as --config runs/NAME/config.yaml"
        )


def check_same(key: str, saved: Any, given: Any) -> None:  # noqa: ANN401 (any value of a config)
    """Refuse another value.

    Raises:
        CxlpError: Names key and values.
    """
    if plain(saved) != plain(given):
        raise CxlpError(
            f"{key} is {given!r}, but the checkpoint's run had {saved!r}: leave it as it was; "
            "--config runs/NAME/config.yaml has all of that run"
        )


def plain(value: Any) -> Any:  # noqa: ANN401 (any value of a config)
    """A value as a checkpoint gives it back."""
    return list(value) if isinstance(value, tuple) else value
