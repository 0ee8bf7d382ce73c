"""``python -m cxlp layers``: its output."""

import json
import shlex
from pathlib import Path

import pytest

from cxlp.__main__ import main

Capture = pytest.CaptureFixture[str]


def test_the_last_layers_come_first_with_what_they_pool(capsys: Capture) -> None:
    assert main(["layers", "timm/test_resnet", "--image-size", "64"]) == 0
    said = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.splitlines() if line.startswith("│")]
    assert ["layer3.0", "Bottleneck", "192", "4 x 4", "16", "ReLU", "layer3.0.downsample"] in rows
    names = [row[0] for row in rows]
    assert names.index("layer3.0") < names.index("layer2.0")
    assert "to rank pairs: python -m cxlp layers timm/test_resnet --data DATA_SET" in said


def test_they_can_be_chosen_and_are_bounded(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cxlp.commands.layers.ROWS", 3)
    assert main(["layers", "timm/test_resnet"]) == 0
    short = capsys.readouterr().out
    assert short.count("\n│ layer") == 3 and "lower layers (--all lists them" in short
    assert main(["layers", "timm/test_resnet", "--all"]) == 0
    assert capsys.readouterr().out.count("\n│ layer") > 20
    assert main(["layers", "timm/test_resnet", "--filter", "layer?.0.conv1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [layer["name"] for layer in found["layers"]] == [f"layer{k}.0.conv1" for k in (1, 2, 3, 4)]
    assert found["image_size"] == 160 and found["layers"][0]["activation"] == "ReLU"


def test_pairs_are_ranked_on_training_images(cub200: Path, capsys: Capture) -> None:
    arguments = ["layers", "timm/test_resnet", "--data", "cub200", "--root", str(cub200), "--weights", "none"]
    assert main([*arguments, "--image-size", "64", "--bbox", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["metric"]) == (18, "accuracy")
    ranked = [pair["quality"] for pair in found["pairs"]]
    assert ranked == sorted(ranked, reverse=True) and len(ranked) == 12
    assert found["pairs"][0]["interval"]["by"] == "Wilson"
    assert main([*arguments, "--image-size", "64", "--images", "9"]) == 0
    said = capsys.readouterr().out
    assert "timm/test_resnet, 12 training images of CUB-200-2011" in said  # four of each class at least
    best = said[said.index("best pair: ") + len("best pair: ") :].splitlines()[0]
    assert best.startswith("--model.backbone.name timm/test_resnet --model.backbone.layers '[")
    assert best.endswith(" --model.backbone.weights null")
    # a run accepts the line as it is
    common = ["--config", "cub200.yaml", "--data.root", str(cub200), "--run.name", "a", "--run.wandb", "off"]
    assert main(["train", *common, *shlex.split(best), "--data.num_workers", "0"]) == 0


def test_layers_may_be_tapped_before_their_activations(cub200: Path, capsys: Capture) -> None:
    arguments = ["layers", "timm/test_resnet", "--data", "cub200", "--root", str(cub200), "--weights", "none"]
    arguments += ["--image-size", "64", "--json", "--activation"]
    assert main([*arguments, "before"]) == 0
    before = {(pair["lower"], pair["upper"]): pair for pair in json.loads(capsys.readouterr().out)["pairs"]}
    assert main([*arguments, "both"]) == 0
    both = json.loads(capsys.readouterr().out)["pairs"]
    assert [pair["activation"] for pair in both].count("after") == len(before) == 12
    again = {(pair["lower"], pair["upper"]): pair for pair in both if pair["activation"] == "before"}
    assert again.keys() < before.keys()  # without those that no activation follows, which are there already
    assert ("layer3.0.conv3", "layer3.0.downsample") in before.keys() - again.keys()
    assert again == {key: before[key] for key in again}


def test_several_labels_are_ranked_by_mean_average_precision(voc2007: Path, capsys: Capture) -> None:
    arguments = ["layers", "timm/test_resnet", "--data", "voc2007", "--root", str(voc2007), "--weights", "none"]
    assert main([*arguments, "--image-size", "32"]) == 0
    said = capsys.readouterr().out
    assert "cv mAP %" in said and "60 training images of" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["timm/"], "Valid: caffenet, "),
        (["nosuchnet"], "unknown backbone 'nosuchnet'"),
        (["timm/test_resnet", "--filter", "layer9"], "Did you mean 'layer4'? Valid: "),
        (["timm/test_resnet", "--image-size", "0"], "--image-size is 0: it must be 1 or more"),
        (["timm/test_resnet", "--bbox"], "ranking of pairs: add --data"),
        (["timm/test_resnet", "--activation", "both"], "ranking of pairs: add --data"),
        (["timm/test_resnet", "--images", "400"], "ranking of pairs: add --data"),
        (["timm/test_resnet", "--data", "mit67", "--filter", "layer"], "--filter and --all do not apply"),
        (["timm/test_resnet", "--data", "mit67", "--all"], "--filter and --all do not apply"),
        (["timm/test_resnet", "--data", "mit67", "--bbox"], "mit67 has no boxes"),
        (["timm/test_vit", "--image-size", "100"], "cannot take images of 100 x 100 pixels"),
    ],
)
def test_wrong_arguments(arguments: list[str], said: str, capsys: Capture) -> None:
    assert main(["layers", *arguments]) == 2
    assert said in capsys.readouterr().err
