"""``model.backbone.layers: auto`` in several runs: one choice for all of them."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from cxlp.__main__ import main
from cxlp.commands.train import main as train
from cxlp.frozen.pairs import PairFit
from cxlp.runs.layers import Ranking
from cxlp.studies.identity import Identities
from cxlp.studies.layers import settled
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
    assert settled(named, folder, Identities()) == named and rankings.count == 0
    found = settled(auto(), folder, Identities())
    (file,) = folder.iterdir()
    best = Ranking.from_csv(file.read_text()).pairs[0].layers
    assert found == [*auto(), f"--{BACKBONE}.layers", json.dumps(best)]
    assert settled(auto("--model.frozen.c", "1", "--trainer.max_epochs", "3"), folder, Identities())[-1] == found[-1]
    assert rankings.count == 1
    # another head may not take the best pair, but the ranking is the same
    other = settled(auto(f"--{POOLING}.pca_dim", "60"), folder, Identities())
    assert rankings.count == 1 and other[-1] != found[-1]
    shutil.rmtree(work / "pictures/train/kind2")
    shutil.rmtree(work / "pictures/test/kind2")
    settled(auto(), folder, Identities())
    assert rankings.count == 2


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
