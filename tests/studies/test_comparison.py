"""``python -m cxlp compare`` from end to end on a tiny CUB-200-2011: rows, files, continuation, failures."""

import csv
import json
import os
import shutil
import textwrap
from collections.abc import Sequence
from hashlib import file_digest
from io import BufferedReader
from pathlib import Path
from typing import Any

import pytest
import yaml

from cxlp.__main__ import main
from cxlp.heads import CrossLayerPooling
from cxlp.runs.cli import model_of, parse
from cxlp.studies.comparison import Comparison, System, without
from cxlp.studies.rows import Row
from cxlp.studies.systems import systems
from cxlp.utils import fingerprint
from tests.generate import write_cub200

PLAIN = [
    *("--config", "cub200.yaml", "--config", "squeezenet.yaml"),
    *("--model.backbone.weights", "null", "--model.backbone.image_size", "64"),
    *("--data.num_workers", "0", "--data.batch_size", "8", "--run.wandb", "off"),
    *("--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.enable_progress_bar", "false"),
]
BASE = [*PLAIN, "--model.head.pca_dim", "8"]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new working directory with ``data/CUB_200_2011``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    write_cub200(tmp_path / "data")
    return tmp_path


def name(*arguments: str, system: str = "CL, 3x3") -> str:
    """Return the name of a run for a config and the code that would compute it."""
    return Comparison(arguments, Path("out"), "accuracy", None)._identify(System(system), arguments)[0]


def test_runs_are_identified_by_their_whole_config_only(work: Path) -> None:
    config = work / "mine.yaml"
    config.write_text("model: {frozen: {c: 10.0}}")
    base = [*BASE, "--config", str(config)]
    first = name(*base)
    assert first.startswith("CL-3x3-")
    assert name(*base, "--run.wandb", "offline", "--model.frozen.store", "x") == first
    assert name(*base, "--model.frozen.c", "10") == first
    assert name(*base, "--trainer.enable_progress_bar", "true", "--data.num_workers", "2") == first
    assert name(*base, "--model.frozen.c", "1") != first
    assert name(*base, "--model.head.size", "3") != first
    assert name(*base, "--model.head", "BilinearPooling") != first
    config.write_text("model: {frozen: {c: 1.0}}")
    assert name(*base) == name(*base, "--model.frozen.c", "1") != first
    assert len(name(*base, system="a" * 300)) < 200  # the name of a folder


def test_an_edit_of_the_code_needs_new_runs(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = work / "site" / "cxlp"
    shutil.copytree(fingerprint._PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprint, "_PACKAGE", package)
    before = name(*BASE)
    normalisation = package / "heads" / "normalisation.py"
    text = normalisation.read_text()
    body = text.index("def signed_sqrt")
    edited = text[:body] + text[body:].replace("clamp_min(eps)", "clamp_min(2 * eps)", 1)
    assert edited != text
    normalisation.write_text(edited)
    assert name(*BASE) != before
    normalisation.write_text(text)
    assert name(*BASE) == before
    for room, same in (("frozen", False), ("data", False), ("runs", False), ("reports", True), ("commands", True)):
        (package / room / "more.py").write_text("")
        assert (name(*BASE) == before) is same, room
        (package / room / "more.py").unlink()


@pytest.mark.parametrize("what", ["digest", "libraries"])
def test_results_of_other_code_or_libraries_are_not_reused(
    work: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    before = name(*BASE)
    if what == "digest":
        monkeypatch.setattr("cxlp.studies.identity.code_digest", lambda rooms, others: "other")
    else:
        monkeypatch.setattr("cxlp.studies.identity.library_versions", lambda names: dict.fromkeys(names, "9.9"))
    assert name(*BASE) != before


def test_results_of_other_weights_or_images_are_not_reused(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for option in ("--model.backbone.weights", "--model.start", "--run.refit"):
        given = [*BASE, "--trainer.max_epochs", "1", option, "mine.pt"]
        Path("mine.pt").write_bytes(b"first")
        before = name(*given)
        Path("mine.pt").write_bytes(b"other")
        assert name(*given) != before
        Path("mine.pt").write_bytes(b"first")
        assert name(*given) == before
    best = Path("runs/mine/checkpoints/best.ckpt")  # which the run's folder is named after
    best.parent.mkdir(parents=True)
    best.write_bytes(b"first")
    given = [*BASE, "--trainer.max_epochs", "1", "--model.start", "runs/mine"]
    before = name(*given)
    best.write_bytes(b"other")
    assert name(*given) != before
    before = name(*BASE)
    image = next(Path("data").rglob("*.jpg"))
    content, written = image.read_bytes(), image.stat()
    image.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(image, ns=(written.st_atime_ns, written.st_mtime_ns))  # its size and date are unchanged
    assert name(*BASE) != before
    image.write_bytes(content)
    assert name(*BASE) == before
    # held-out images may be drawn again by each process
    drawn = ["--data.validation", "0.34", "--data.split_seed", "null"]
    assert name(*BASE, *drawn) == name(*BASE, *drawn)


def test_images_are_read_once_for_all_systems(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def digest_of(file: BufferedReader, kind: Any) -> Any:
        read.append(file.name)
        return file_digest(file, kind)

    monkeypatch.setattr("cxlp.studies.identity.file_digest", digest_of)
    comparison = Comparison(BASE, Path("out"), "accuracy", None)
    names = {comparison._identify(System("x"), [*BASE, *more])[0] for more in ((), ("--data.validation", "0.34"))}
    assert len(names) == 2 and len(read) == len(set(read)) == 27


OWN = {
    "own_head.py": """
        from cxlp import Head
        class Largest(Head):
            def __init__(self, scale: float = 1.0, layers: list[str] | None = None):
                super().__init__(layers)
                self.scale = scale
            def build(self, shapes):
                self.out_features = shapes[0][0]
            def forward(self, features, views=1):
                return self.scale * features.amax(dim=(2, 3))
        """,
    "own_trunk.py": """
        from torch import nn
        def trunk() -> nn.Module:
            return nn.Sequential(nn.Conv2d(3, 4, 3, stride=8), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.ReLU())
        """,
    "own_partial.py": """
        from functools import partial
        from torchvision.models import resnet18
        trunk = partial(resnet18, num_classes=3)
        """,
    "own_data.py": """
        from cxlp.data.cub200 import CUB200
        class Birds(CUB200):
            pass
        """,
}
USED = {
    "own_head.py": ["--model.head", "own_head_USED.Largest"],
    "own_trunk.py": ["--model.backbone.name", "own_trunk_USED.trunk", "--model.backbone.layers", "['1', '3']"],
    "own_partial.py": [
        "--model.backbone.name",
        "own_partial_USED.trunk",
        "--model.backbone.layers",
        "[layer1, layer2]",
    ],
    "own_data.py": ["--data", "own_data_USED.Birds"],
}


@pytest.mark.parametrize("file", OWN)
def test_an_edit_of_a_custom_part_needs_new_runs(work: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    monkeypatch.syspath_prepend(work)
    module = work / file.replace(".py", "_USED.py")
    text = textwrap.dedent(OWN[file])
    module.write_text(text)
    arguments, others = [*PLAIN, *USED[file]], name(*BASE)
    before = name(*arguments)
    assert name(*arguments) == before
    module.write_text(text + "EDITED = True\n")
    assert name(*arguments) != before
    assert name(*BASE) == others


@pytest.mark.parametrize(
    "given",
    [
        ["--model.head.size", "5", "--model.backbone.layers=[features.10, features.11]"],
        ["--model.head", '{"class_path": "CrossLayerPooling", "init_args": {"size": 5, "layers": null}}'],
        ["--model.backbone", '{"name": "squeezenet1_0", "layers": ["features.10", "features.11"]}'],
    ],
)
def test_the_command_line_does_not_change_a_systems_network(work: Path, given: list[str]) -> None:
    arguments = [*BASE, *given]
    comparison = Comparison(arguments, work / "out", "accuracy", None)
    model = model_of(parse(arguments))
    (base,) = model.heads
    assert isinstance(base, CrossLayerPooling)
    made = systems(model.backbone, base)
    for wanted in ("CL", "CL, 1x1" if base.size != 1 else "CL, 3x3", "CNN-Global", "CL + CNN-Jitter", "iSQRT-COV"):
        found = model_of(parse(comparison._arguments(System(wanted, made[wanted]))))
        assert [head.spec() for head in found.heads] == made[wanted]["heads"]
        assert list(found.backbone.layers) == made[wanted]["layers"]
        assert found.backbone.image_size == 64


def test_systems_are_derived_from_a_cross_layer_pooling(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = '[{"class_path": "AveragePooling"}, {"class_path": "CrossLayerPooling"}]'
    for head in ("AveragePooling", two):
        assert main(["compare", *PLAIN, "--model.head", head]) == 2
        assert "one head, CrossLayerPooling" in capsys.readouterr().err


def test_a_config_of_several_heads_can_be_swept(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overlay = work / "heads.yaml"
    overlay.write_text("model: {head: [{class_path: AveragePooling}, {class_path: CrossLayerPooling}]}")
    sweep = ["--sweep", "model.frozen.c=[1, 10]", "--list"]
    assert main(["compare", *PLAIN, "--config", str(overlay), *sweep]) == 0
    assert capsys.readouterr().out.splitlines() == ["1", "10"]


def test_options_are_left_out_with_their_values() -> None:
    given = ["--config", "a", "--model.head.x", "1", "--model.head=2", "--model.c", "--b", "3"]
    assert without(given, "--model.head") == ["--config", "a", "--model.c", "--b", "3"]


def exchange_labels() -> None:
    """Exchange the labels of the first two classes in one list of CUB-200-2011."""
    file = Path("data/CUB_200_2011/image_class_labels.txt")
    rows = [line.split() for line in file.read_text().splitlines()]
    file.write_text("".join(f"{number} {({'1': '2', '2': '1'}).get(label, label)}\n" for number, label in rows))


@pytest.mark.parametrize("change", ["labels", "images", "libraries"])
def test_results_of_other_data_are_reported_and_replaced(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    def run_in(place: Path, arguments: Sequence[str], log: Path) -> Path:
        place.mkdir(parents=True)
        (place / "metrics.json").write_text('{"outputs": {}}')
        return place

    monkeypatch.setattr("cxlp.studies.comparison.run_in", run_in)
    system = System("CL")

    def places() -> list[Path]:
        Comparison(BASE, Path("out"), "accuracy", None).run([system])
        return sorted(path for path in Path("out").iterdir() if path.name != "logs")

    (first,) = places()
    assert places() == [first] and f"done already, in {first}" in capsys.readouterr().out
    if change == "labels":
        exchange_labels()
    elif change == "images":
        next(Path("data").rglob("*_3.jpg")).write_bytes(next(Path("data").rglob("*_4.jpg")).read_bytes())
    else:
        monkeypatch.setattr("cxlp.studies.identity.library_versions", lambda names: dict.fromkeys(names, "9.9"))
    (second,) = set(places()) - {first}
    said = "other versions of libraries" if change == "libraries" else "other images, boxes or labels"
    assert f"CL: {second} (not done yet: the results in {first} are of {said})" in capsys.readouterr().out
    assert len(places()) == 2 and f"done already, in {second}" in capsys.readouterr().out


@pytest.mark.slow
def test_systems_run_once_and_share_one_table(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", *BASE, "--systems", "average", "CL", "CL, signs", "CL + CNN-Global", "--out", "out"]
    assert main(command) == 0
    first = Path("out/results.csv").read_text()
    rows = list(csv.DictReader(first.splitlines()))
    # in the order of the list of systems
    assert [r["system"] for r in rows] == ["CL", "CL, signs", "CL + CNN-Global", "average"]
    assert [int(r["size"]) for r in rows] == [512 * 8, 512 * 8, 512 * 8 + 512, 512]
    assert [float(r["kB"]) for r in rows] == [16.4, 1.0, 18.4, 2.0]  # two bits per sign
    for r in rows:
        (folder,) = Path("out").glob(f"{'-'.join(r['system'].replace('+', ' ').replace(',', '').split())}-????????")
        found = json.loads((folder / "metrics.json").read_text())
        assert float(r["test accuracy %"]) == round(100 * found["metrics"]["test/accuracy"], 2)
        assert float(r["network ms"]) > 0 and float(r["peak MB"]) > 100
    for file in ("results.md", "accuracy_against_time.png", "accuracy_against_size.png", "per_class.png"):
        assert Path("out", file).stat().st_size > 300
    assert list(Path("runs/features").glob("*/entry.json"))
    capsys.readouterr()
    # again: finished runs are not repeated; the stopped one is
    fit_seconds = {r["system"]: float(r["fit s"]) for r in rows}
    (killed,) = Path("out").glob("average-????????")
    config = (killed / "config.yaml").read_text()
    shutil.rmtree(killed)  # before its fit was finished
    killed.mkdir()
    (killed / "config.yaml").write_text(config)
    (tested,) = Path("out").glob("CL-CNN-Global-????????")
    (tested / "metrics.json").unlink()  # within its test
    times = {p: p.stat().st_mtime_ns for p in Path("out").glob("CL-????????/metrics.json")}
    assert main(command) == 0
    said = capsys.readouterr().out
    assert said.count("done already") == 2 and (killed / "metrics.json").is_file()
    assert {p: p.stat().st_mtime_ns for p in Path("out").glob("CL-????????/metrics.json")} == times
    assert "since resumed" in json.loads((tested / "metrics.json").read_text())["seconds"]
    again = list(csv.DictReader(Path("out/results.csv").read_text().splitlines()))
    assert [r["test accuracy %"] for r in again] == [r["test accuracy %"] for r in rows]
    # the time to compute the stored features is included
    found = json.loads((killed / "metrics.json").read_text())
    assert "features made by an earlier run" not in json.loads((tested / "metrics.json").read_text())
    assert float(again[3]["fit s"]) > found["features made by an earlier run"]["seconds"]["extraction"] - 0.1
    assert fit_seconds["average"] > 0
    assert main(["compare", "--clean"]) == 0
    assert not Path("runs/features").exists()


@pytest.mark.slow
def test_a_sweep_runs_the_values_of_an_option(work: Path) -> None:
    key = "model.head.pca_dim"
    assert main(["compare", *BASE, "--sweep", f"{key}=[2, 4]", "--out", "out"]) == 0
    rows = list(csv.DictReader(Path("out/results.csv").read_text().splitlines()))
    assert [(r["system"], int(r["size"])) for r in rows] == [("2", 2 * 512), ("4", 4 * 512)]
    assert Path("out/sweep.png").stat().st_size > 1000


@pytest.mark.slow
def test_recipes_are_compared_by_validation_curves(work: Path) -> None:
    held = ["--data.validation", "0.34", "--trainer.max_epochs", "2"]
    command = ["compare", *BASE, *held, "--recipes", "none", "mine.yaml", "--reach", "2", "--out", "out"]
    tuned = {"head": {"init_args": {"pca_dim": 4}}, "optimizer": {"backbone_lr": 0.01}}
    overlay = {"model": tuned, "data": {"init_args": {"validation": 0.2}}, "trainer": {"max_epochs": 7}}
    Path("mine.yaml").write_text(yaml.safe_dump(overlay))
    assert main(command) == 0
    rows = list(csv.DictReader(Path("out/results.csv").read_text().splitlines()))
    assert [r["system"] for r in rows] == ["none", "mine"]
    # the command line overrides a recipe, too
    assert [int(r["size"]) for r in rows] == [8 * 512] * 2
    (folder,) = Path("out").glob("mine-????????")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["data"]["init_args"]["validation"] == 0.34 and config["trainer"]["max_epochs"] == 2
    points = list(csv.DictReader(Path("out/validation.csv").read_text().splitlines()))
    assert [(p["system"], p["epoch"]) for p in points] == [("mine", str(epoch)) for epoch in range(3)]
    values = [float(p["val/accuracy %"]) for p in points]
    assert float(rows[1]["val %"]) == round(max(values), 2)
    assert rows[1]["epochs to 2 %"] == str(next(epoch for epoch, value in enumerate(values) if value >= 2))
    assert float(rows[0]["val %"]) == round(values[0], 2)  # epoch 0 is the frozen fit
    assert Path("out/validation.png").stat().st_size > 5000


@pytest.mark.slow
def test_each_row_is_the_mean_over_seeds(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # random weights, which depend on the seed
    command = ["compare", *BASE, "--sweep", "model.head.pca_dim=[4]", "--out", "out", "--seeds"]
    assert main([*command, "1"]) == 0
    assert "±" not in Path("out/results.csv").read_text()
    (first,) = Path("out").glob("4-????????/metrics.json")
    capsys.readouterr()
    assert main([*command, "2"]) == 0
    said = capsys.readouterr().out
    assert f"4, seed 0: done already, in {first.parent}" in said  # a single seed is the first of several
    (second,) = set(Path("out").glob("4-????????/metrics.json")) - {first}
    found = [json.loads(file.read_text()) for file in (first, second)]
    values = [100 * f["metrics"]["test/accuracy"] for f in found]
    (row,) = csv.DictReader(Path("out/results.csv").read_text().splitlines())
    assert float(row["test accuracy %"]) == round(sum(values) / 2, 2)
    assert float(row["±"]) == round(abs(values[0] - values[1]) / 2**0.5, 2)
    assert float(row["network ms"]) == round(1000 * found[0]["cost"]["network"], 2)
    assert yaml.safe_load((second.parent / "config.yaml").read_text())["seed_everything"] == 1
    assert "| ± |" in Path("out/results.md").read_text()


@pytest.mark.slow
def test_a_system_that_fails_does_not_stop_the_others(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *BASE, "--sweep", "model.head.pca_dim=[2, 4000]", "--out", "out"]) == 1
    assert "no result: 4000" in capsys.readouterr().out
    assert [r["system"] for r in csv.DictReader(Path("out/results.csv").read_text().splitlines())] == ["2"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--systems", "CL-99"], "unknown system 'CL-99'. Valid: CNN-Global"),
        (["--sweep", "model.frozen.c=3"], "give a key and a list of values for it, such as 'model.frozen.c="),
        (["--sweep", "=[2]"], "--sweep =[2]: give a key and a list of values for it"),
        (["--sweep", "model.frozen.c=[2, 2]"], "a value occurs twice"),
        (["--sweep", "model.frozen.d=[2]"], "unknown key model.frozen.d"),
        (["--sweep", "model.frozen.c=[3"], "--sweep model.frozen.c=[3"),
        (["--sweep", "model.frozen.c=[3]", "--systems", "CL"], "--systems and --sweep exclude each other"),
        (["--recipes", "squeezenet.yaml", "--sweep", "a=[3]"], "--sweep and --recipes exclude each other"),
        (
            ["--recipes", "none", "--reach", "88"],
            "--reach needs held-out images, and there are none: set data.validation",
        ),
        (["--data.validation", "0.34", "--reach", "0.88"], "--reach is 0.88: give a percentage"),
        (["--recipes", "a/x.yaml", "b/x.yaml"], "two of them have the same name"),
        (["--recipes", "squeezenet.yaml", "finetun.yaml"], "config file not found: finetun.yaml"),
        (["--seeds", "0"], "seeds is 0: it must be 1 or more"),
        (
            ["--seeds", "2", "--sweep", "seed_everything=[0, 1]"],
            "--seeds and --sweep seed_everything exclude each other",
        ),
        (["--run.root", "x"], "--run.root has no effect"),
        (["--data.bach_size", "3"], "unknown key data.bach_size"),
    ],
)
def test_wrong_arguments_are_explained(
    work: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["compare", *BASE, *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.parametrize(("incomplete", "status"), [(True, 3), (False, 0)])
def test_a_comparison_reports_a_missing_output_of_a_run(
    work: Path, monkeypatch: pytest.MonkeyPatch, incomplete: bool, status: int
) -> None:
    cost = dict.fromkeys(("passes", "dimension", "network", "encoding", "classification", "bare pass"), 1.0)
    row = Row("4", 50.0, None, cost, 32, 5_000_000, 1.5, {}, (), incomplete)
    monkeypatch.setattr(Comparison, "run", lambda self, systems: ([row], []))
    monkeypatch.setattr("cxlp.studies.tables.write_reports", lambda *_: [])
    assert main(["compare", *BASE, "--sweep", "model.head.pca_dim=[4]", "--out", "out"]) == status


def test_an_impossible_value_is_a_failed_system(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *BASE, "--sweep", "model.head.size=[2]", "--out", "out"]) == 1
    failed, last = capsys.readouterr().out.splitlines()
    assert failed.startswith("[1/1] 2: size is 2: ") and last == "no result: 2"


@pytest.mark.parametrize("content", ['"metrics": 1', '"metrics": {"test/accuracy": 0.5}', '"seconds": {}'])
def test_broken_results_are_reported_with_the_remedy(
    work: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    comparison = Comparison(BASE, Path("out"), "accuracy", None)
    place = Path("out") / comparison._identify(System("CL"), BASE)[0]
    place.mkdir(parents=True)
    (place / "metrics.json").write_text(f'{{{content}, "outputs": {{}}}}')
    assert comparison.run([System("CL")]) == ([], ["CL"])
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith(f"[1/1] CL: {place}")
    assert f": delete {place} and repeat the command" in said


def test_a_file_instead_of_the_folder(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").write_text("")
    assert main(["compare", *BASE, "--sweep", "model.frozen.c=[1]", "--out", "out"]) == 2
    assert capsys.readouterr().err == "error: cannot create the folder out: File exists. Give another --out\n"


@pytest.mark.parametrize("given", [BASE, ["--config=demo.yaml"]], ids=["arguments", "a config"])
def test_the_systems_are_listed(work: Path, capsys: pytest.CaptureFixture[str], given: list[str]) -> None:
    assert main(["compare", *given, "--list"]) == 0
    assert {"CL", "CL-lower", "CNN-Global", "R-CNN SCFV", "CL + CNN-Jitter"} <= set(
        capsys.readouterr().out.splitlines()
    )
