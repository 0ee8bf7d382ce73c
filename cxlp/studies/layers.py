"""``model.backbone.layers: auto`` in several runs: pairs are ranked once per backbone and data set."""

import json
from collections.abc import Sequence
from glob import escape
from pathlib import Path

import pytorch_lightning as pl
from jsonargparse import Namespace

from cxlp.runs.arguments import read_yaml
from cxlp.runs.cli import parse, parts_of
from cxlp.runs.layers import Ranking, choose_pair, rank_in_run
from cxlp.studies.identity import Identities, name_of
from cxlp.utils.errors import CxlpError
from cxlp.utils.files import write_whole
from cxlp.utils.progress import say

#: The key that names the layers.
KEY = "model.backbone.layers"
#: Prefixes of the keys that a ranking depends on.
_KEYS = ("model.backbone.", "data.")
#: A ranking takes one process, whatever the runs take.
_ALONE = {"num_nodes": 1, "strategy": "auto", "plugins": None}


def depends_on_seed(config: Namespace) -> bool:
    """Return whether a ranking depends on ``seed_everything``.

    It does if ``seed_everything`` determines which images are held out. Layers that were chosen with one seed would
    then be chosen on images that another seed holds out.

    Args:
        config: The resolved config of a run.
    """
    data = parts_of(config)["data"]
    return bool(data.validation) and not isinstance(data.validation, str) and data.split_seed is None


def check_one_choice(config: Namespace, seeds: Sequence[int]) -> None:
    """Check that one ranking is valid for all seeds, since the paper's systems are derived from one pair of layers.

    Raises:
        CxlpError: If ``config`` does not name layers, there are several seeds, and the ranking depends on the seed.
    """
    if config[KEY] == "auto" and len(seeds) > 1 and depends_on_seed(config):
        raise CxlpError(
            f"{KEY} auto, --seeds and data.split_seed null exclude each other, because each seed "
            f"may choose other layers: name the layers, --{KEY} '[LOWER, UPPER]', or set data.split_seed to a number"
        )


def name_layers(arguments: Sequence[str], folder: Path, identities: Identities) -> list[str]:
    """Replace ``model.backbone.layers: auto`` by the names of two layers.

    Args:
        arguments: Arguments of ``train.py``.
        folder: Folder of all runs, which keeps the ranking for later calls. The name of the ranking's file depends on
            the backbone, the images, the code and, see :func:`depends_on_seed`, the seed.
        identities: Computes that name.

    Returns:
        The arguments, followed by the names of the layers; unchanged if they already name layers.

    Raises:
        CxlpError: If the heads accept no pair, or the file of the ranking is broken.
    """
    config = parse(arguments)
    if config[KEY] != "auto":
        return list(arguments)
    pl.seed_everything(config["seed_everything"], workers=True, verbose=False)  # as in the run itself
    keys = (*_KEYS, "seed_everything") if depends_on_seed(config) else _KEYS
    identity = identities.of(config)
    identity["config"] = {key: value for key, value in identity["config"].items() if key.startswith(keys)}
    file = folder / f"layers-{name_of(identity)}.csv"
    parts = parts_of(config)
    model, data = parts["model"], parts["data"]
    if not file.is_file():
        data.prepare_data()
        data.setup()
        for key, value in _ALONE.items():
            config["trainer"][key] = value
        config["trainer"]["devices"] = _first_device(config["trainer"]["devices"])
        ranking = rank_in_run(config, model, data)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, ranking.as_csv())
        say(choose_pair(ranking, model.backbone, model.heads)[1])
    try:
        ranking = Ranking.from_csv(file.read_text())
    except (ValueError, IndexError) as error:
        raise CxlpError(f"{file} is broken: delete it, and the pairs of layers are ranked again") from error
    return [*arguments, *_named(choose_pair(ranking, model.backbone, model.heads)[0])]


def earlier_layers(config: Namespace, folder: Path, place: Path) -> list[str]:
    """Return the layers that an earlier run of a series with several seeds has chosen, as arguments of ``train.py``.

    All runs of a series use the layers of its first run. If the ranking depends on the seed, each run has its own
    ranking, and only the same run that was stopped or is finished counts as an earlier one.

    Args:
        config: Config of the series.
        folder: Folder of the series.
        place: Folder of the run.

    Returns:
        An empty list if ``config`` names layers, or there is no earlier run.
    """
    if config[KEY] != "auto":
        return []
    runs = escape(place.name) if depends_on_seed(config) else f"{escape(folder.name)}-seed*"
    begun = sorted(folder.glob(f"{runs}/config.yaml"), key=lambda file: file.stat().st_mtime)
    return _named(read_yaml(str(begun[0]))["model"]["backbone"]["layers"]) if begun else []


def _first_device(devices: int | str | list[int]) -> int | str | list[int]:
    """Return the first of the devices that ``trainer.devices`` lists, or 1 if it gives their number."""
    if isinstance(devices, str):
        return devices.split(",")[0] + "," if "," in devices else 1
    return devices[:1] if isinstance(devices, list) else 1


def _named(layers: Sequence[str]) -> list[str]:
    return [f"--{KEY}", json.dumps(list(layers))]
