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
#: Keys that a ranking depends on, by their beginnings.
_KEYS = ("model.backbone.", "data.")
#: One process, whatever the runs have.
_ALONE = {"devices": 1, "num_nodes": 1, "strategy": "auto", "plugins": None}


def settled(arguments: Sequence[str], folder: Path, identities: Identities) -> list[str]:
    """Name the layers that ``auto`` stands for.

    Args:
        arguments: Of ``train.py``.
        folder: Of all runs. A ranking is kept there in a file whose name stands for all that it depends on, and is
            not done again.
        identities: Makes that name.

    Returns:
        The arguments with the layers behind them; as they are where they name layers already.

    Raises:
        CxlpError: If there is no pair that the heads take.
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
    """Name the layers that the first run of a series with several seeds has chosen, as arguments of the other runs.

    Args:
        config: Of the series.
        folder: Likewise.

    Returns:
        Nothing where ``config`` names layers, or no run has begun.
    """
    if config[KEY] != "auto":
        return []
    begun = sorted(folder.glob(f"{folder.name}-seed*/config.yaml"), key=lambda file: file.stat().st_mtime)
    return _named(read_yaml(str(begun[0]))["model"]["backbone"]["layers"]) if begun else []


def _named(layers: Sequence[str]) -> list[str]:
    return [f"--{KEY}", json.dumps(list(layers))]
