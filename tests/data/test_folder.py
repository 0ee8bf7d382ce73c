"""Folders of one's own: both layouts, what is an image, and what is said about odd ones."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxlp.data.dataset import Sample
from cxlp.data.decode import read_image
from cxlp.data.folder import Folder
from cxlp.utils.errors import CxlpError
from tests.generate import write_folder, write_image

DOT = np.zeros((4, 4, 3), np.uint8)


def fill(root: Path, *files: str) -> Path:
    for file in files:
        write_image(root / file, DOT)
    return root


def names(samples: list[Sample], root: Path) -> list[str]:
    return [sample.path.relative_to(root).as_posix() for sample in samples]


def test_given_split_is_kept(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "mine", classes=3, train=4, test=2, size=16)
    classes, samples = Folder(root).read()
    assert classes == ("kind0", "kind1", "kind2")
    for split, count in (("train", 4), ("test", 2)):
        part = samples["train"] if split == "train" else samples["test"]
        expected = [f"{split}/kind{k}/{i:02d}.png" for k in range(3) for i in range(count)]
        assert names(part, root) == expected
        assert [sample.label for sample in part] == [k for k in range(3) for _ in range(count)]


def test_split_is_made_class_by_class_and_is_the_same_in_every_run(tmp_path: Path) -> None:
    root = fill(tmp_path, *(f"{c}/{i}.png" for c, n in (("few", 5), ("many", 20)) for i in range(n)))
    classes, samples = Folder(root).read()
    assert classes == ("few", "many")
    assert [sum(s.label == k for s in samples["test"]) for k in (0, 1)] == [1, 4]
    assert [sum(s.label == k for s in samples["train"]) for k in (0, 1)] == [4, 16]
    everything = samples["train"] + samples["test"]
    assert len({sample.path for sample in everything}) == 25
    assert all(classes.index(sample.path.parent.name) == sample.label for sample in everything)
    # The run's seed draws augmentations and the validation part, never the test set.
    assert Folder(root, split_seed=5).read() == (classes, samples)


def test_test_fraction_is_used(tmp_path: Path) -> None:
    root = fill(tmp_path, *(f"{c}/{i}.png" for c in "ab" for i in range(10)))
    assert len(Folder(root, test_fraction=0.5).read()[1]["test"]) == 10


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.2, 3])
def test_test_fraction_out_of_range_is_refused(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(CxlpError, match=f"test_fraction is {fraction}"):
        Folder(tmp_path, test_fraction=fraction)


def test_nested_and_uppercase_files_are_found_and_all_others_are_counted(tmp_path: Path) -> None:
    root = fill(
        tmp_path,
        *("train/a/1.JPG", "train/a/deep/er/2.Png", "train/b/1.png", "test/a/3.webp"),
        *("train/a/._1.jpg", "train/a/.thumbnails/1.jpg", "train/.git/x/1.png", "train/a/@eaDir/1.jpg/thumb.jpg"),
        *("loose.png", "train/loose.png", "predict/1.png", "predict/a/2.png", "train/a/1.jpg.part.png"),
    )
    for file in ("train/a/notes.txt", "train/a/table", "README.md", "train/b/2.txt", "__MACOSX"):
        (root / file).write_text("no image")
    (root / "train/a/1.jpg.part.png").rename(root / "train/a/1.jpg.part")
    (root / "train/a/folder.png").mkdir()
    module = Folder(root)
    classes, samples = module.read()
    assert classes == ("a", "b")
    assert names(samples["train"], root) == ["train/a/1.JPG", "train/a/deep/er/2.Png", "train/b/1.png"]
    assert names(samples["test"], root) == ["test/a/3.webp"]
    assert module.left_out == {
        "hidden": 5,
        "outside class folders (.png)": 2,
        "outside class folders (.md)": 1,
        "in predict, beside the splits": 2,
        "backups or unfinished": 1,
        "no pictures (.txt)": 2,
        "no pictures (no suffix)": 1,
    }
    files = sum(path.is_file() for path in root.rglob("*"))
    assert files == sum(map(len, samples.values())) + module.left_out.total()
    (line,) = module.remarks()
    assert line.startswith(f"left out of {root}: 1 backups or unfinished, 5 hidden, 2 in predict, beside the splits, ")


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *(("a.jfif", "JPEG"), ("a.JPE", "JPEG"), ("a.pgm", "PPM"), ("a.avif", "AVIF"), ("a.jpg_large", "JPEG")),
        *(("a", "JPEG"), ("a", "PNG"), ("a.jp2", "JPEG2000"), ("a.tga", "TGA"), ("a.jpg?w=300", "WEBP")),
        *(("photo.2020-05-01", "GIF"), ("a.apng", "PNG"), ("a.dib", "BMP")),
    ],
)
def test_whatever_pillow_reads_is_an_image(tmp_path: Path, name: str, form: str) -> None:
    root = fill(tmp_path, "train/k/1.png", "test/k/1.png")
    Image.new("RGB", (4, 4), (9, 99, 199)).save(root / "train" / "k" / name, form)
    module = Folder(root)
    found = {sample.path.name: sample.path for sample in module.read()[1]["train"]}
    assert found.keys() == {"1.png", name} and not module.left_out
    assert read_image(found[name]).shape == (4, 4, 3)


def test_raw_files_of_cameras_are_no_images_for_their_small_previews(tmp_path: Path) -> None:
    root = fill(tmp_path, "train/k/1.png", "test/k/1.png")
    Image.new("RGB", (4, 4)).save(root / "train" / "k" / "a.nef", "TIFF")
    module = Folder(root)
    module.read()
    assert module.left_out == {"no pictures (.nef)": 1}


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root = fill(tmp_path / "root", "train/a/1.png", "train/b/1.png", "test/a/2.png")
    elsewhere = fill(tmp_path / "elsewhere", "3.png", "deep/4.png")
    (root / "train" / "a" / "more").symlink_to(elsewhere)
    (root / "train" / "a" / "loop").symlink_to("..")
    (elsewhere / "deep" / "back").symlink_to(root / "train" / "a")  # by way of another folder
    (root / "train" / "a" / "note").symlink_to("1.png")
    module = Folder(root, image_size=8)
    _, samples = module.read()
    assert names(samples["train"], root) == [
        *("train/a/1.png", "train/a/more/3.png", "train/a/more/deep/4.png", "train/a/note"),
        "train/b/1.png",
    ]
    assert module.left_out == {"links to a folder that they lie in": 2}


@pytest.mark.parametrize("name", ["2.png", "annexed", "2.JFIF"])
def test_a_link_to_nothing_is_a_missing_image(tmp_path: Path, name: str) -> None:
    root = fill(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/2.png")
    (root / "train" / "a" / name).symlink_to("../../.git/annex/objects/1")
    with pytest.raises(CxlpError, match=rf"1 of 4 images are missing, such as .*{name} \(a link to .*objects/1, wh"):
        Folder(root, image_size=8).setup()
    (root / "train" / "a" / name).rename(root / "train" / "class")
    if "." not in name:
        with pytest.raises(CxlpError, match=r"train/class is a link to .*objects/1, which is not there: fetch it"):
            Folder(root).read()


def test_folders_that_cannot_be_listed_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fill(tmp_path, "train/a/1.png", "train/a/session/2.png", "test/a/2.png")
    list_it = Path.iterdir

    def closed(path: Path) -> Iterator[Path]:
        if path.name == "session":
            raise PermissionError(13, "Permission denied")
        return list_it(path)

    monkeypatch.setattr(Path, "iterdir", closed)
    with pytest.raises(CxlpError, match=r"cannot list .*/train/a/session: Permission denied"):
        Folder(root).read()


def test_val_is_the_official_validation_or_without_test_the_test(tmp_path: Path) -> None:
    root = fill(tmp_path, *(f"{split}/{c}/1.png" for split in ("train", "valid", "test") for c in "ab"))
    parts = {}
    for validation in ("official", 0):
        module = Folder(root, image_size=8, validation=validation)
        module.setup()
        parts[validation] = {split: names(data.samples, root) for split, data in module.splits.items()}
        assert module.remarks() == ["warning: taken for splits by their names: valid (val)"]
    assert parts["official"] == {
        s: [f"{f}/a/1.png", f"{f}/b/1.png"] for s, f in (("train", "train"), ("val", "valid"), ("test", "test"))
    }
    assert parts[0]["train"] == parts["official"]["train"] + parts["official"]["val"] and parts[0]["val"] == []
    shutil.rmtree(root / "test")
    module = Folder(root, image_size=8)
    module.setup()
    assert names(module.splits["test"].samples, root) == ["valid/a/1.png", "valid/b/1.png"]
    assert module.remarks() == [
        "warning: taken for splits by their names: valid (val)",
        f"warning: there is no folder for the test: the test images are those of {root / 'valid'}",
    ]
    with pytest.raises(CxlpError, match="no official validation images"):
        Folder(root, image_size=8, validation="official").setup()


def test_splits_may_be_nested_once_more(tmp_path: Path) -> None:
    root = fill(tmp_path, *(f"seg_{s}/seg_{s}/{c}/1.png" for s in ("train", "test") for c in "ab"), "seg_pred/1.png")
    module = Folder(root)
    classes, samples = module.read()
    assert classes == ("a", "b") and len(samples["train"]) == len(samples["test"]) == 2
    assert module.left_out == {"in seg_pred, beside the splits": 1}


def test_folders_below_the_classes_that_may_be_the_classes_are_told(tmp_path: Path) -> None:
    root = fill(tmp_path, *(f"{s}/{c}/{i}.png" for s in ("A", "B") for c in ("cat", "dog") for i in range(5)))
    module = Folder(root)
    assert module.read()[0] == ("A", "B")
    assert module.remarks()[0].startswith("warning: the classes A, B all hold the folders cat, dog: if these ")
    with pytest.raises(CxlpError, match=f"holds one folder: .*data.root: {root / 'whole'}"):
        (root / "whole").mkdir()
        for name in "AB":
            (root / name).rename(root / "whole" / name)
        Folder(root).read()


def test_hidden_parent_does_not_hide_the_images(tmp_path: Path) -> None:
    root = write_folder(tmp_path / ".cache" / "mine", size=8)
    assert len(Folder(root).read()[1]["train"]) == 18


def test_names_may_hold_spaces_and_other_letters(tmp_path: Path) -> None:
    root = fill(tmp_path, "train/élan vital/eins zwei.png", "test/élan vital/ß.png", "train/ö/1.png")
    module = Folder(root, image_size=8)
    module.setup()
    assert module.classes == ("élan vital", "ö")
    assert module.splits["test"][0]["image"].shape == (3, 8, 8)


def test_class_without_test_images_is_allowed(tmp_path: Path) -> None:
    classes, samples = Folder(fill(tmp_path, "train/a/1.png", "train/b/1.png", "test/b/2.png")).read()
    assert classes == ("a", "b")
    assert [sample.label for sample in samples["test"]] == [1]


def test_missing_root_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CxlpError, match="expected mine/train/<class>") as caught:
        Folder("mine").setup()
    assert str(tmp_path / "mine") in str(caught.value), "the absolute path: it may be the wrong working folder"
    assert "demo.yaml" in str(caught.value)


def test_a_file_for_a_root_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "mine.zip").write_text("")
    with pytest.raises(CxlpError, match=r"mine\.zip is a file, no folder; expected"):
        Folder(tmp_path / "mine.zip").read()


@pytest.mark.parametrize("split", ["train/", ""])
def test_empty_class_folders_are_named(tmp_path: Path, split: str) -> None:
    files = [f"{split}{c}/{i}.png" for c in "ab" for i in range(5)]
    root = fill(tmp_path, *files, *(["test/a/9.png"] if split else []))
    (root / split / "c").mkdir()
    with pytest.raises(CxlpError, match=f"no images in {root}/{split}c: fill or remove"):
        Folder(root).read()


@pytest.mark.parametrize(("there", "other"), [("train", "test"), ("test", "train")])
def test_half_a_split_is_refused(tmp_path: Path, there: str, other: str) -> None:
    with pytest.raises(CxlpError, match=f"has {there} but not both train and test"):
        Folder(fill(tmp_path, f"{there}/a/1.png")).read()
    (tmp_path / other).mkdir()  # now it is there, but empty
    with pytest.raises(CxlpError):
        Folder(tmp_path, image_size=8).setup()


def test_class_that_is_only_in_test_is_named(tmp_path: Path) -> None:
    with pytest.raises(CxlpError, match="test has classes that train has not: stranger"):
        Folder(fill(tmp_path, "train/a/1.png", "test/a/1.png", "test/stranger/1.png")).read()


def test_folder_without_classes_or_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CxlpError, match="no class folders"):
        Folder(tmp_path).read()
    (tmp_path / "empty").mkdir()
    with pytest.raises(CxlpError, match="there are no training images"):
        Folder(tmp_path, image_size=8).setup()
    fill(tmp_path, "full/1.png", "full/2.png", "full/3.png")
    with pytest.raises(CxlpError, match="empty"):
        Folder(tmp_path, image_size=8).setup()


def test_class_of_one_image_cannot_be_split_and_is_named(tmp_path: Path) -> None:
    fill(tmp_path, "lonely/1.png", *(f"many/{i}.png" for i in range(9)))
    with pytest.raises(CxlpError, match="the rarest, 'lonely', has 1"):
        Folder(tmp_path).read()
