"""``model.backbone.layers: auto`` in several runs: one choice for all of them."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from jsonargparse import Namespace

from cxlp.__main__ import main
from cxlp.commands.train import main as train
from cxlp.data.dataset import Draw, ImageDataset
from cxlp.frozen.pairs import PairFit
from cxlp.runs.cli import parse, parts_of
from cxlp.runs.layers import Ranking
from cxlp.studies.identity import Identities
from cxlp.studies.layers import earlier_layers, name_layers
from cxlp.utils.errors import CxlpError
from tests.runs.test_layers import Rankings, auto, layers
from tests.small_run import BACKBONE, POOLING, write_pictures


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh working directory with pictures in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    write_pictures(tmp_path)
    return tmp_path


def test_pairs_are_ranked_once_for_a_backbone_and_its_data(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rankings, folder = Rankings(monkeypatch), Path("out")
    named = auto(f"--{BACKBONE}.layers", "[layer2, layer3]")
    assert name_layers(named, folder, Identities()) == named and rankings.count == 0
    found = name_layers(auto(), folder, Identities())
    (file,) = folder.iterdir()
    best = Ranking.from_csv(file.read_text()).pairs[0].layers
    assert found == [*auto(), f"--{BACKBONE}.layers", json.dumps(best)]
    assert (
        name_layers(auto("--model.frozen.c", "1", "--trainer.max_epochs", "3"), folder, Identities())[-1] == found[-1]
    )
    assert rankings.count == 1
    # another head may not take the best pair, but the ranking is the same
    other = name_layers(auto(f"--{POOLING}.pca_dim", "60"), folder, Identities())
    assert rankings.count == 1 and other[-1] != found[-1]
    shutil.rmtree(work / "pictures/train/kind2")
    shutil.rmtree(work / "pictures/test/kind2")
    name_layers(auto(), folder, Identities())
    assert rankings.count == 2


DRAWN = ("--data.validation", "0.34", "--data.split_seed", "null")


def test_images_that_a_seed_holds_out_are_not_ranked(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[int, list[str]] = {}
    seen: list[str] = []
    picture = ImageDataset.picture

    def noted(data: ImageDataset, draw: Draw) -> torch.Tensor:
        seen.append(str(data.samples[draw.item].path))
        return picture(data, draw)

    monkeypatch.setattr(ImageDataset, "picture", noted)
    for seed in (3, 4):
        seen.clear()
        arguments = auto(*DRAWN, "--seed_everything", str(seed))
        name_layers(arguments, Path("out"), Identities())
        pl.seed_everything(seed, verbose=False)
        data = parts_of(parse(arguments))["data"]
        data.setup()
        found[seed] = sorted(str(sample.path) for sample in data.splits["train"].samples)
        assert sorted(seen) == found[seed]
    assert found[3] != found[4]
    assert len(list(Path("out").glob("layers-*.csv"))) == 2


def test_rankings_of_random_weights_depend_on_the_seed_only(work: Path) -> None:
    rankings = []
    for draws in (1, 2):
        torch.rand(draws)
        name_layers(auto("--seed_everything", "7"), Path(f"out{draws}"), Identities())
        (file,) = Path(f"out{draws}").iterdir()
        rankings.append((file.name, file.read_text()))
    assert rankings[0] == rankings[1]


def test_a_series_keeps_the_layers_of_its_first_run_or_of_each_run(work: Path) -> None:
    series = Path("runs/se[r]ies")  # a pattern, if it were not escaped
    for seed, chosen in ((0, ["layer1", "layer2"]), (1, ["layer2", "layer3"])):
        file = series / f"{series.name}-seed{seed}" / "config.yaml"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"model": {"backbone": {"layers": chosen}}}))
        os.utime(file, (100 + seed, 100 + seed))
    shared, own = parse(auto()), parse(auto(*DRAWN))
    found = [earlier_layers(shared, series, series / f"{series.name}-seed{seed}") for seed in (0, 1, 2)]
    assert found == 3 * [["--model.backbone.layers", '["layer1", "layer2"]']]
    found = [earlier_layers(own, series, series / f"{series.name}-seed{seed}") for seed in (0, 1, 2)]
    assert [each[1:] for each in found] == [['["layer1", "layer2"]'], ['["layer2", "layer3"]'], []]


def test_systems_with_layers_of_one_seed_are_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *auto(*DRAWN), "--seeds", "2", "--systems", "CL", "--out", "out"]) == 2
    assert "model.backbone.layers auto, --seeds and data.split_seed null" in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_broken_ranking_is_refused(work: Path) -> None:
    name_layers(auto(), Path("out"), Identities())
    (file,) = Path("out").iterdir()
    for text in ("", "lower,upper\n", "a,b,c,cv_accuracy\nx\n"):
        file.write_text(text)
        with pytest.raises(CxlpError, match=rf"{file} is broken: delete it"):
            name_layers(auto(), Path("out"), Identities())


@pytest.mark.parametrize(
    ("devices", "one"), [("auto", 1), (4, 1), ("2", 1), (-1, 1), ([3, 1], [3]), ("2,", "2,"), ("5, 6", "5,")]
)
def test_a_ranking_takes_the_first_of_the_devices(
    devices: Any, one: Any, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def caught(config: Namespace, *_: object) -> None:
        raise CxlpError(config["trainer"]["devices"])

    monkeypatch.setattr("cxlp.studies.layers.rank_in_run", caught)
    with pytest.raises(CxlpError) as raised:
        name_layers(auto("--trainer.devices", str(devices)), Path("out"), Identities())
    assert raised.value.args == (one,)


@pytest.mark.slow
def test_systems_and_sweeps_are_of_the_chosen_layers(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *auto(), "--systems", "CL", "average", "--out", "out", "--no-store"]) == 0
    (file,) = Path("out").glob("layers-*.csv")
    best = list(Ranking.from_csv(file.read_text()).pairs[0].layers)
    (cross,) = Path("out").glob("CL-*/config.yaml")
    assert yaml.safe_load(cross.read_text())["model"]["backbone"]["layers"] == best
    (average,) = Path("out").glob("average-*/config.yaml")
    assert yaml.safe_load(average.read_text())["model"]["backbone"]["layers"] == best[1:]
    assert capsys.readouterr().out.count("layers: ") == 1
    sweep = ["compare", *auto(), "--sweep", "model.frozen.c=[1, 10]", "--out", "swept", "--no-store"]
    assert main(sweep) == 0
    assert capsys.readouterr().out.count("layers: ") == 1
    configs = list(Path("swept").glob("*/config.yaml"))
    assert len(configs) == 2
    assert all(yaml.safe_load(file.read_text())["model"]["backbone"]["layers"] == best for file in configs)
    assert main(sweep) == 0  # all is there
    assert "layers: " not in capsys.readouterr().out


@pytest.mark.slow
def test_seeds_have_the_layers_of_the_first_run(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    command = auto("--run.name", "series", "--seeds", "2")
    assert train(command) == 0
    first, second = (Path("runs/series", f"series-seed{seed}") for seed in (0, 1))
    assert layers(first) == layers(second) == list(Ranking.from_csv((first / "layers.csv").read_text()).pairs[0].layers)
    assert not (second / "layers.csv").exists()

    def refused(fit: PairFit) -> dict[str, float]:
        raise AssertionError

    monkeypatch.setattr(PairFit, "finish", refused)
    assert train(command) == 0  # done already


@pytest.mark.slow
def test_each_seed_that_draws_its_images_has_its_own_ranking(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    command = auto(*DRAWN, "--run.name", "series", "--seeds", "2")
    assert train(command) == 0
    for seed in (0, 1):
        folder = Path("runs/series", f"series-seed{seed}")
        assert layers(folder) == list(Ranking.from_csv((folder / "layers.csv").read_text()).pairs[0].layers)
    results = Path("runs/series/results.json").read_text()
    assert train(command) == 0  # both are found again
    assert Path("runs/series/results.json").read_text() == results
