"""``model.backbone.layers: auto``: chosen once, on training images, and saved by name."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock

import cxlp
from cxlp.commands.train import main
from cxlp.data.dataset import Draw, ImageDataset
from cxlp.frozen.pairs import PairFit, RankedPair
from cxlp.metrics.intervals import Interval
from cxlp.models.checkpoint import load_network
from cxlp.runs.layers import Ranking
from tests.generate import write_voc2007
from tests.small_run import ARGUMENTS, BACKBONE, FINETUNE, POOLING, metrics

TRAIN = Path(__file__).parents[2] / "train.py"


def auto(*more: str) -> list[str]:
    """The small run's arguments, but that its layers are not named."""
    arguments = list(ARGUMENTS)
    arguments[arguments.index(f"--{BACKBONE}.layers") + 1] = "auto"
    return [*arguments, *more]


def ranking(folder: Path) -> Ranking:
    return Ranking.from_csv((folder / "layers.csv").read_text())


def layers(folder: Path, name: str = "config") -> list[str]:
    found: list[str] = yaml.safe_load((folder / f"{name}.yaml").read_text())["model"]["backbone"]["layers"]
    return found


class Rankings:
    """Counts rankings."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        finish = PairFit.finish

        def counted(fit: PairFit) -> dict[str, float]:
            self.count += 1
            return finish(fit)

        monkeypatch.setattr(PairFit, "finish", counted)


@pytest.fixture
def rankings(monkeypatch: pytest.MonkeyPatch) -> Rankings:
    return Rankings(monkeypatch)


def test_the_best_pair_is_taken_told_and_saved(
    work: Path, rankings: Rankings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = ["--data.validation", "0.34"]
    seen: list[str] = []
    picture = ImageDataset.picture

    def noted(data: ImageDataset, draw: Draw) -> torch.Tensor:
        if rankings.count == 0:
            seen.append(str(data.samples[draw.item].path))
        return picture(data, draw)

    monkeypatch.setattr(ImageDataset, "picture", noted)
    assert main(auto("--run.name", "first", *held_out)) == 0
    first = Path("runs/first")
    best = ranking(first).pairs[0]
    said = capsys.readouterr().out
    assert f"layers: {best.lower}, {best.upper}, cross-validated accuracy " in said
    assert "11 training images, the best of 12 pairs" in said
    assert layers(first) == list(best.layers) == list(load_network(first / "checkpoints" / "best.ckpt").backbone.layers)
    assert ranking(first).images == len(seen) == 11 and all("/train/" in path for path in seen)  # 7 are held out
    assert {p.name for p in Path("runs").iterdir()} == {"first"}  # nothing is left of the ranking
    assert "choice of layers" in metrics(first)["seconds"]
    assert metrics(first)["seconds"]["start-up"] >= 0
    # The saved config names two, and gives the same run.
    assert main(["--config", "runs/first/config.yaml", "--run.name", "again"]) == 0
    assert rankings.count == 1 and not Path("runs/again/layers.csv").exists()
    assert Path("runs/again/predictions.csv").read_text() == (first / "predictions.csv").read_text()
    from cxlp.__main__ import main as command

    assert command(["test", "runs/first"]) == 0 and rankings.count == 1


def test_a_run_that_goes_on_or_is_refitted_or_started_from_keeps_its_layers(work: Path, rankings: Rankings) -> None:
    closing = ["--model.closing_fit", "true"]
    assert main(auto("--run.name", "whole", *FINETUNE, *closing, "--run.refit", "true")) == 0
    assert rankings.count == 1
    whole = Path("runs/whole")
    assert layers(whole) == layers(whole / "refit") == list(ranking(whole).pairs[0].layers)
    # A run that was stopped after its frozen fit, gone on with by the command that began it.
    assert main(auto("--run.name", "stopped", *FINETUNE, *closing, "--trainer.max_epochs", "1")) == 0
    stopped = Path("runs/stopped")
    for file in ("last", "closing", "finetuned", "best"):
        (stopped / "checkpoints" / f"{file}.ckpt").unlink()
    stages = json.loads((stopped / "stages.json").read_text())
    (stopped / "stages.json").write_text(json.dumps({"frozen": stages["frozen"]}))
    assert rankings.count == 2
    command = auto(*FINETUNE, *closing, "--trainer.max_epochs", "1", "--ckpt_path", "runs/stopped")
    assert main(command) == 0
    assert rankings.count == 2 and layers(stopped, "config-resumed") == layers(stopped)
    start = ["--model.start", "runs/stopped/checkpoints/frozen.ckpt"]
    assert main(auto("--run.name", "next", *FINETUNE, "--trainer.max_epochs", "1", *start)) == 0
    assert rankings.count == 2 and layers(Path("runs/next")) == layers(stopped)


def test_heads_of_one_layer_take_the_last_and_custom_backbones_work(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work / "nets.py").write_text(
        "from torch import nn\n"
        "def trunk():\n"
        "    convs = [nn.Sequential(nn.Conv2d(3 if k == 0 else 8, 8, 3, 4 if k == 0 else 1, 1), nn.ReLU())"
        " for k in range(3)]\n"
        "    return nn.Sequential(*convs)\n"
    )
    monkeypatch.syspath_prepend(work)
    result = cxlp.train(
        "folder.yaml",
        {
            "data": {"root": "pictures", "num_workers": 0},
            BACKBONE: {"name": "nets.trunk", "layers": "auto", "image_size": 32},
            POOLING: cxlp.AveragePooling(),
            "run": {"wandb": "off", "name": "own"},
            "trainer": {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False},
        },
    )
    found = ranking(result.folder)
    assert {layer for pair in found.pairs for layer in pair.layers} == {"0.0", "1.0", "2.0"} and len(found.pairs) == 3
    assert load_network(result.folder / "checkpoints" / "best.ckpt").backbone.layers == (found.pairs[0].upper,)


def test_several_labels_are_ranked_by_mean_average_precision(work: Path) -> None:
    write_voc2007(work, (2, 1, 1), size=32)
    arguments = auto("--data", "voc2007", "--data.root", str(work / "VOCdevkit/VOC2007"), "--run.name", "voc")
    arguments[1] = "voc2007.yaml"
    assert main([*arguments, "--trainer.accelerator", "cpu", "--data.validation", "0"]) == 0
    found = ranking(Path("runs/voc"))
    assert found.metric == "mAP" and all(0 < pair.quality < 1 for pair in found.pairs)
    assert layers(Path("runs/voc")) == list(found.pairs[0].layers)


def test_activation_before_is_kept(work: Path) -> None:
    assert main(auto("--run.name", "before", f"--{BACKBONE}.activation", "before")) == 0
    assert {pair.activation for pair in ranking(Path("runs/before")).pairs} == {"before"}
    network = load_network("runs/before/checkpoints/best.ckpt")
    assert network.backbone.spec()["activation"] == "before"


def test_pairs_that_do_not_suit_the_head_are_passed_over(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # layer2 and the inside of layer3 have at most 48 channels
    assert main(auto("--run.name", "wide", f"--{POOLING}.pca_dim", "60")) == 0
    said = capsys.readouterr().out
    found = ranking(Path("runs/wide"))
    chosen = layers(Path("runs/wide"))
    assert chosen != list(found.pairs[0].layers) and chosen in [list(pair.layers) for pair in found.pairs]
    first = found.pairs[0]
    found_quality = next(pair.quality for pair in found.pairs if [*pair.layers] == chosen)
    how = "better" if found_quality < first.quality else "as good and costs less"
    assert f"({first.lower}, {first.upper} is {how}, but the head does not accept it: pca_dim is 60" in said


def test_views_may_be_cut_of_larger_images(work: Path) -> None:
    views = [f"--{POOLING}.views.kind", "blocks", "--data.image_size", "64"]  # of a backbone that takes 32
    assert main(auto("--run.name", "views", *views)) == 0
    assert layers(Path("runs/views")) == list(ranking(Path("runs/views")).pairs[0].layers)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([f"--{POOLING}.pca_dim", "2000"], "auto, but the head accepts none of 12 pairs: pca_dim is 2000"),
        ([f"--{POOLING}.layers", "[layer2, layer3]"], "auto, which chooses two layers, but CrossLayerPooling names"),
        ([f"--{BACKBONE}.layers", "autos"], "model.backbone.layers is 'autos': expected"),
    ],
    ids=["no pair suits the head", "the head names layers", "misspelt"],
)
def test_what_is_refused(
    work: Path, rankings: Rankings, more: Sequence[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(auto("--run.name", "none", *more)) == 2
    assert said in capsys.readouterr().err
    assert rankings.count == 0 and not [*Path("runs").glob("*"), *Path("runs").glob(".*")]


def test_a_root_that_is_a_file_is_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "file").write_text("")
    assert main(auto("--run.root", "file")) == 2
    assert "cannot write to file: File exists. Give another --run.root" in capsys.readouterr().err


def test_folders_of_killed_rankings_are_deleted(work: Path) -> None:
    killed, held = Path("runs/.layers-0a"), Path("runs/.layers-0b")
    for folder in (killed, held):
        folder.mkdir(parents=True)
        (folder / "maps-0.bin").write_bytes(b"0")
    Path("runs/.layers-0c.lock").touch()
    with FileLock(held.with_suffix(".lock")):  # as by a ranking that is in progress
        assert main(auto("--run.name", "next")) == 0
        assert {path.name for path in Path("runs").iterdir()} == {held.name, f"{held.name}.lock", "next"}


def test_a_class_of_one_image_is_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in sorted((work / "pictures/train/kind1").iterdir())[1:]:
        file.unlink()
    assert main(auto("--run.name", "none")) == 2
    assert (
        "a ranking of pairs of layers needs two training images of each class, but 'kind1'" in capsys.readouterr().err
    )
    assert not [*Path("runs").glob("*"), *Path("runs").glob(".*")]


def test_a_backbone_alone_takes_names() -> None:
    with pytest.raises(cxlp.CxlpError, match=r"layers are 'auto': name one or more, each once \(only runs take auto\)"):
        cxlp.Backbone("timm/test_resnet", "auto", weights=None)


def test_a_ranking_is_read_as_it_was_written() -> None:
    pairs = (
        RankedPair("a", "b", 0.5, Interval(0.25, 0.75, "Wilson"), 3, 9, 100, "after"),
        RankedPair("a, c", "d", 0.25, None, 3, 9, 100, "before"),
    )
    assert Ranking.from_csv(Ranking(pairs, 18, "accuracy").as_csv()) == Ranking(pairs, 18, "accuracy")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["Lightning", "torchrun"])
def test_two_processes_choose_as_one_does(work: Path, launcher: str) -> None:
    assert main(auto("--run.name", "one")) == 0
    start = [sys.executable]
    if launcher == "torchrun":
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ddp = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "2", "--run.name", "two"]
    found = subprocess.run(
        [*start, str(TRAIN), *auto(*ddp)], check=True, timeout=300, stdout=subprocess.PIPE, text=True
    ).stdout
    assert found.count("layers: ") == 1
    one, two = (ranking(Path("runs", name)) for name in ("one", "two"))
    assert [(pair.layers, pair.quality) for pair in two.pairs] == [(pair.layers, pair.quality) for pair in one.pairs]
    assert layers(Path("runs/two")) == layers(Path("runs/one"))
    a, b = (load_network(f"runs/{name}/checkpoints/best.ckpt").state_dict() for name in ("one", "two"))
    for key, value in a.items():
        torch.testing.assert_close(b[key], value, rtol=1e-3, atol=1e-4)
    assert {p.name for p in Path("runs").iterdir()} == {"one", "two"}


@pytest.mark.slow
def test_both_processes_end_where_pairs_cannot_be_ranked(work: Path) -> None:
    for file in sorted((work / "pictures/train/kind1").iterdir())[1:]:
        file.unlink()
    ddp = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "2", "--run.name", "two"]
    ended = subprocess.run(
        [sys.executable, str(TRAIN), *auto(*ddp)], timeout=300, stderr=subprocess.PIPE, text=True, check=False
    )
    assert ended.returncode == 2
    assert "a ranking of pairs of layers needs two training images of each class" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not list(Path("runs").iterdir())
