"""torchvision's data sets, as tiny copies in their own layouts: files, labels, names, splits and downloads."""

import inspect
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from cxlp.data import data_module
from cxlp.data.torchvision import Torchvision
from cxlp.data.torchvision_sets import DATA_SETS
from cxlp.utils.errors import CxlpError
from tests.data.torchvision_copies import COPIES, aircraft, mnist, picture
from tests.generate import write_image

ARRAYS = ("CIFAR10", "MNIST")


@pytest.mark.parametrize("name", COPIES)
def test_files_labels_names_and_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write, classes, counts = COPIES[name]
    write(tmp_path, monkeypatch)
    module = Torchvision(name, tmp_path, test_fraction=0.33, download=False, image_size=8)
    module.prepare_data()
    found, samples = module.read()
    assert found == classes and {split: len(part) for split, part in samples.items()} == counts
    for part in samples.values():
        assert {s.label for s in part} == {0, 1} and all(s.path.is_file() for s in part)
        own = tmp_path / f"{name}-png"
        assert all(s.path.is_relative_to(own) == (name in ARRAYS) for s in part), "files are not copied"
    module.setup()
    fitted = counts["train"] + counts.get("val", 0)
    assert [len(module.splits[split]) for split in ("train", "val", "test")] == [fitted, 0, counts["test"]]
    assert module.name == name and not module.multi_label
    if "val" in counts:
        held = Torchvision(name, tmp_path, validation="official", image_size=8)
        held.setup()
        assert [len(held.splits[split]) for split in ("train", "val")] == [counts["train"], counts["val"]]


def test_images_that_are_arrays_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mnist(tmp_path, monkeypatch)
    module = Torchvision("mnist", tmp_path)
    with pytest.raises(CxlpError, match=r"MNIST: .*prepare_data\(\), or by .* download torchvision/MNIST"):
        module.read()
    module.prepare_data()
    first = module.read()[1]["train"][0].path
    assert np.array_equal(np.asarray(Image.open(first)), picture(0, 1, 28)[..., 0])
    before = first.stat().st_mtime_ns
    Torchvision("MNIST", tmp_path).prepare_data()
    assert first.stat().st_mtime_ns == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["MNIST", "MNIST-png"]


def test_a_failed_write_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mnist(tmp_path, monkeypatch)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(CxlpError, match=r"MNIST: cannot write its images into .*MNIST-png: .*No space left"):
        Torchvision("MNIST", tmp_path).prepare_data()
    assert [path.name for path in tmp_path.iterdir()] == ["MNIST"]


def test_options_are_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aircraft(tmp_path, monkeypatch)
    names = tmp_path / "fgvc-aircraft-2013b" / "data" / "manufacturers.txt"
    names.write_text("Boeing\n" + names.read_text())
    module = Torchvision("FGVCAircraft", tmp_path, options={"annotation_level": "manufacturer"})
    assert module.read()[0] == ("A300 B4", "F/A-18"), "classes without pictures are left out"
    for options, said in (
        ({"split": "train"}, r"data\.options: FGVCAircraft's split selects a split"),
        ({"level": 3}, r"data\.options: FGVCAircraft's level is unknown to torchvision. .*annotation_level"),
        ({"transform": "x"}, r"FGVCAircraft's transform cannot be set. .*annotation_level"),
        (
            {"annotation_level": "tail"},
            r"FGVCAircraft: torchvision cannot read it \(data.options\?\): Unknown value 'tail'",
        ),
    ):
        with pytest.raises(CxlpError, match=said):
            Torchvision("FGVCAircraft", tmp_path, options=options).read()


def test_class_names_match_the_chosen_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    COPIES["OxfordIIITPet"][0](tmp_path, monkeypatch)
    for file in (tmp_path / "oxford-iiit-pet" / "annotations").glob("*.txt"):  # a cat, and a dog
        lines = [line.split() for line in file.read_text().splitlines()]
        file.write_text("".join(f"{name} {k} {k} 1\n" for name, k, _, _ in lines))
    module = Torchvision("OxfordIIITPet", tmp_path, options={"target_types": "binary-category"})
    assert module.read()[0] == ("Cat", "Dog")


def test_names_of_a_higher_taxonomic_rank(tmp_path: Path) -> None:
    ranks = ("Animalia_Chordata_Aves_Gruiformes_Rallidae_Fulica_atra", "Plantae_Tracheophyta_M_A_B_C_alba")
    for version in ("2021_train", "2021_valid"):
        for k, rank in enumerate((ranks[0], ranks[0][:-4] + "cristata", ranks[1])):
            write_image(tmp_path / version / f"{k:05d}_{rank}" / "a.jpg", picture(k, 0))
    assert Torchvision("INaturalist", tmp_path, options={"target_type": "kingdom"}).read()[0] == ("Animalia", "Plantae")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("OxfordIIITPet", {"target_types": "segmentation"}),
        ("OxfordIIITPet", {"target_types": ["category", "binary-category"]}),
        ("Caltech101", {"target_type": "annotation"}),
        ("CelebA", {"target_type": "identity"}),
        ("CelebA", {"target_type": ["attr", "identity"]}),
    ],
)
def test_targets_that_are_not_class_labels_are_refused(name: str, options: dict[str, object]) -> None:
    with pytest.raises(CxlpError, match=rf"data\.options: {name}'s target_types? is .*: valid are "):
        Torchvision(name, options=options)


@pytest.mark.parametrize(("name", "place"), [("OxfordIIITPet", "oxford-iiit-pet/images"), ("GTSRB", "gtsrb")])
def test_a_broken_image_is_handled_if_torchvision_opens_every_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, place: str
) -> None:
    COPIES[name][0](tmp_path, monkeypatch)
    whole = Torchvision(name, tmp_path).read()[1]["train"]
    broken = next(sample.path for sample in whole if sum(s.label == sample.label for s in whole) > 1)
    assert broken.is_relative_to(tmp_path / place)
    broken.write_bytes(b"nothing")
    module = Torchvision(name, tmp_path)
    module.setup()
    with pytest.raises(CxlpError, match=rf"(?s)data\.on_broken: skip leaves them out.*{broken.name}"):
        module.fingerprints("train")
    module = Torchvision(name, tmp_path, on_broken="skip")
    module.setup()
    assert len(module.splits["train"]) == len(whole) - 1 and list(module.broken) == [broken]


def test_pillow_works_again_after_torchvision_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opening = Image.open
    COPIES["GTSRB"][0](tmp_path, monkeypatch)
    Torchvision("GTSRB", tmp_path).read()
    assert Image.open is opening


def test_a_missing_data_set_is_downloaded_atomically(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def fetch(self: datasets.FGVCAircraft) -> None:
        calls.append(Path(self.root))
        if len(calls) == 1:
            (Path(self.root) / "fgvc-aircraft-2013b").mkdir()
            raise ConnectionError("the network is down")
        if not self._check_exists():
            aircraft(Path(self.root), monkeypatch)

    monkeypatch.setattr(datasets.FGVCAircraft, "_download", fetch)
    root = tmp_path / "data"
    with pytest.raises(
        CxlpError, match=r"torchvision cannot download FGVCAircraft: the network is down. By hand: .*html"
    ):
        Torchvision("FGVCAircraft", root).prepare_data()
    assert list(root.iterdir()) == [], "torchvision treats an empty folder as complete"
    module = Torchvision("FGVCAircraft", root)
    module.prepare_data()
    assert len(module.read()[1]["train"]) == 4 and set(calls) == {root / ".FGVCAircraft.partial"}
    assert [path.name for path in root.iterdir()] == ["fgvc-aircraft-2013b"]
    assert "FGVCAircraft is not in " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "download", "said"),
    [
        ("FGVCAircraft", False, r"FGVCAircraft is not in .*: Dataset not found.*Download is off\. By hand: "),
        ("StanfordCars", True, "torchvision cannot download StanfordCars: The original URL is broken"),
        ("FER2013", True, r"FER2013 is not in .*Torchvision cannot download it\. By hand: "),
    ],
)
def test_a_failed_download_says_what_to_do(tmp_path: Path, name: str, download: bool, said: str) -> None:
    with pytest.raises(CxlpError, match=said):
        Torchvision(name, tmp_path, download=download).prepare_data()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CxlpError, match=rf"{name} is not in {tmp_path}"):
        Torchvision(name, tmp_path).read()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", r"data\.name is not set"),
        ("Flowers", "Did you mean 'Flowers102'"),
        ("CocoDetection", r"data\.name is 'CocoDetection'"),
    ],
)
def test_other_names_are_refused(name: str, said: str) -> None:
    with pytest.raises(CxlpError, match=said):
        Torchvision(name)


@pytest.mark.parametrize("name", DATA_SETS)
def test_torchvision_takes_the_arguments_of_the_splits(name: str) -> None:
    parameters = inspect.signature(getattr(datasets, name)).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    for given in DATA_SETS[name].values():
        assert given.keys() <= parameters.keys() or inspect.Parameter.VAR_KEYWORD in kinds


def test_commands_name_them_behind_a_slash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aircraft(tmp_path, monkeypatch)
    module = data_module("torchvision/FGVCAircraft", tmp_path)
    assert module.name == "FGVCAircraft" and module.root == tmp_path
    for name, said in (
        ("torchvision", "torchvision/Flowers102"),
        ("cub200/x", "there is no data set 'cub200/x'"),
    ):
        with pytest.raises(CxlpError, match=said):
            data_module(name)
