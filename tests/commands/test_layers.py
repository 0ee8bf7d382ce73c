"""``python -m cxlp layers``: its output."""

import json
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
    assert "--model.backbone.layers '[layer4.0.downsample, layer4.0]'" in said


def test_they_can_be_chosen_and_are_bounded(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cxlp.commands.layers.ROWS", 3)
    assert main(["layers", "timm/test_resnet"]) == 0
    short = capsys.readouterr().out
    assert short.count("\n│ layer") == 3 and "below them (--all lists them" in short
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
    assert found["images"] == 18
    ranked = [pair["accuracy"] for pair in found["pairs"]]
    assert ranked == sorted(ranked, reverse=True) and len(ranked) >= 2
    assert main([*arguments, "--image-size", "64", "--images", "9"]) == 0
    said = capsys.readouterr().out
    assert "timm/test_resnet, 9 training images of CUB-200-2011" in said
    assert "the best: --model.backbone.name timm/test_resnet --model.backbone.layers '[" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["timm/"], "Valid: caffenet, "),
        (["nosuchnet"], "unknown backbone 'nosuchnet'"),
        (["timm/test_resnet", "--filter", "layer9"], "has no such layer. Did you mean 'layer4'? Valid: "),
        (["timm/test_resnet", "--image-size", "0"], "--image-size is 0: it must be 1 or more"),
        (["timm/test_resnet", "--bbox"], "give --data, too"),
        (["timm/test_resnet", "--data", "voc2007"], "images of one label each"),
        (["timm/test_resnet", "--data", "mit67", "--bbox"], "mit67 has no boxes"),
        (["timm/test_vit", "--image-size", "100"], "cannot take images of 100 x 100 pixels"),
    ],
)
def test_wrong_arguments(arguments: list[str], said: str, capsys: Capture) -> None:
    assert main(["layers", *arguments]) == 2
    assert said in capsys.readouterr().err
