"""``model.backbone.layers: auto`` in several runs: pairs are ranked once for each backbone and data set."""

import json
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

from cxlp.runs.arguments import read_yaml
from cxlp.runs.cli import parse, parts_of
from cxlp.runs.layers import Ranking, choose_pair, rank_in_run
from cxlp.studies.identity import Identities, name_of
from cxlp.utils.files import write_whole
from cxlp.utils.progress import say

#: The key that names the layers.
KEY = "model.backbone.layers"
#: Prefixes of the keys that a ranking depends on.
_KEYS = ("model.backbone.", "data.")
#: The ranking takes one process, whatever the runs take.
_ALONE = {"devices": 1, "num_nodes": 1, "strategy": "auto", "plugins": None}


def settled(arguments: Sequence[str], folder: Path, identities: Identities) -> list[str]:
    """Replace ``model.backbone.layers: auto`` by two names.

    Args:
        arguments: Arguments of ``train.py``.
        folder: Folder of all runs. The ranking is kept there, in a file whose name depends on the backbone, the images
            and the code, and is read again by the next call.
        identities: Computes that name.

    Returns:
        The arguments, followed by the names of the layers; unchanged if they name layers already.

    Raises:
        CxlpError: If the heads accept no pair.
    """
    config = parse(arguments)
    if config[KEY] != "auto":
        return list(arguments)
    identity = identities.of(config)
    identity["config"] = {key: value for key, value in identity["config"].items() if key.startswith(_KEYS)}
    file = folder / f"layers-{name_of(identity)}.csv"
    parts = parts_of(config)
    model, data = parts["model"], parts["data"]
    if not file.is_file():
        data.prepare_data()
        data.setup()
        for key, value in _ALONE.items():
            config["trainer"][key] = value
        ranking = rank_in_run(config, model, data)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, ranking.as_csv())
        say(choose_pair(ranking, model.backbone, model.heads)[1])
    ranking = Ranking.from_csv(file.read_text())
    return [*arguments, *_named(choose_pair(ranking, model.backbone, model.heads)[0])]


def settled_by_first(config: Namespace, folder: Path) -> list[str]:
    """Return the layers that the first run of a series with several seeds has chosen, as arguments for the others.

    Args:
        config: Config of the series.
        folder: Folder of the series.

    Returns:
        An empty list if ``config`` names layers, or no run has begun.
    """
    if config[KEY] != "auto":
        return []
    begun = sorted(folder.glob(f"{folder.name}-seed*/config.yaml"), key=lambda file: file.stat().st_mtime)
    return _named(read_yaml(str(begun[0]))["model"]["backbone"]["layers"]) if begun else []


def _named(layers: Sequence[str]) -> list[str]:
    return [f"--{KEY}", json.dumps(list(layers))]
