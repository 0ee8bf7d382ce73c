"""The published data sets: they are downloaded and unpacked, and missing lists are named."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cxlp.data.benchmark import Benchmark
from cxlp.data.cub200 import CUB200
from cxlp.data.dataset import Content, Sample
from cxlp.data.h3d import H3D
from cxlp.data.mit67 import MIT67
from cxlp.data.voc2007 import VOC2007
from cxlp.utils.errors import CxlpError
from tests.editing import edit, pack, unverified, windows_ends
from tests.generate import write_cub200, write_h3d, write_mit67, write_voc2007
from tests.server import Server


class Case(NamedTuple):
    """A benchmark, a small release of it, and its archives: paths in the archive by paths of the release."""

    module: Callable[..., Benchmark]
    write: Callable[[Path], Path]
    archives: Callable[[Path], dict[str, dict[str, Path]]]
    message: tuple[str, ...]


def voc2007_archives(folder: Path) -> dict[str, dict[str, Path]]:
    """Separate the test's lists and images from the others."""
    packed: dict[str, dict[str, Path]] = {"VOCtrainval_06-Nov-2007.tar": {}, "VOCtest_06-Nov-2007.tar": {}}
    test = set((folder / "ImageSets" / "Main" / "test.txt").read_text().split())
    for path in folder.rglob("*.*"):
        is_test = path.stem in test or path.stem.endswith("test")
        members = packed[f"VOC{'test' if is_test else 'trainval'}_06-Nov-2007.tar"]
        members[f"VOCdevkit/VOC2007/{path.relative_to(folder).as_posix()}"] = path
    return packed


def mit67_archives(images: str) -> Callable[[Path], dict[str, dict[str, Path]]]:
    return lambda folder: {"indoorCVPR_09.tar": {images: folder / "Images"}}


CASES = {
    "cub200": Case(
        CUB200,
        lambda folder: write_cub200(folder, size=32),
        lambda folder: {"CUB_200_2011.tgz": {"CUB_200_2011": folder}},
        ("https://data.caltech.edu/", "97eceeb196236b17998738112f37df78", "--data.root", "demo.yaml"),
    ),
    "mit67": Case(
        MIT67,
        lambda folder: write_mit67(folder, size=32),
        mit67_archives("Images"),
        ("indoorCVPR_09.tar", "0b252516e746ba428b96af408d2e8162d9b08ac5", "TestImages.txt"),
    ),
    "mit67, nested": Case(
        MIT67, lambda folder: write_mit67(folder, size=32), mit67_archives("indoorCVPR_09/Images"), ("TrainImages.txt",)
    ),
    "voc2007": Case(
        VOC2007,
        lambda folder: write_voc2007(folder, (2, 1, 1), size=32),
        voc2007_archives,
        ("VOCtrainval_06-Nov-2007.tar", "VOCtest_06-Nov-2007.tar", "https://pjreddie.com/"),
    ),
    "h3d": Case(
        H3D,
        lambda folder: write_h3d(folder, 18, 9, size=32),
        lambda folder: {"attributes_dataset.tgz": {"attributes_dataset": folder}},
        ("https://www2.eecs.berkeley.edu/", "attributes_dataset.tgz", "no checksum published"),
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def moved(content: Content, old: Path, new: Path) -> Content:
    """Return the same samples below another root."""
    classes, samples = content
    return classes, {
        split: [Sample(new / s.path.relative_to(old), s.label, s.box) for s in part] for split, part in samples.items()
    }


def test_official_files_become_the_folder(
    case: Case, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = case.write(tmp_path / "release")
    expected = case.module(folder).read()
    placed = tmp_path / "placed"
    for archive, members in case.archives(folder).items():
        pack(placed / archive, members)
    official = case.module("none").files
    for file in official:
        if not (placed / file.file).exists():  # a list that is a plain file
            (placed / file.file).write_bytes((folder / file.file).read_bytes())
    # The official entries, except for addresses and checksums.
    contents = {file.file: (placed / file.file).read_bytes() for file in official}
    files = tuple(
        replace(
            file,
            urls=(server.url("/down"), server.offer(f"/{file.file}", contents[file.file])),
            checksum=f"sha256:{hashlib.sha256(contents[file.file]).hexdigest()}",
            size=len(contents[file.file]),
        )
        for file in official
    )
    for root, allowed in ((tmp_path / "fetched" / folder.name, True), (placed / folder.name, False)):
        module = case.module(root, download=allowed, image_size=16)
        module.files = files if allowed else unverified(files)
        module.prepare_data()
        module.prepare_data()
        assert module.read() == moved(expected, folder, root)
        module.setup()
        assert sum(map(len, module.splits.values())) == sum(map(len, expected[1].values()))
    assert [a.path.partition("?")[0] for a in server.asked] == [p for f in files for p in ("/down", f"/{f.file}")]
    assert [path.name for path in (tmp_path / "fetched").iterdir()] == [folder.name]


def test_a_missing_data_set_names_its_folder_and_the_remedy(case: Case, tmp_path: Path) -> None:
    root = tmp_path / "nothing" / "here"
    module: Any = case.module(root, download=False)
    for ask in (module.prepare_data, module.setup):
        with pytest.raises(CxlpError) as caught:
            ask()
        assert all(part in str(caught.value) for part in (str(root), *case.message))
    assert not root.parent.exists()


def test_a_missing_list_is_named_with_its_archive(case: Case, tmp_path: Path) -> None:
    module = case.module(case.write(tmp_path), image_size=16)
    for path in module.lists:
        content = (module.root / path).read_bytes()
        (module.root / path).unlink()
        file = next((f for f in module.files if path in (f.file, getattr(f, "marker", ""))), module.files[0])
        with pytest.raises(CxlpError, match=rf"(?s){path} not in {module.root}. By hand: .*{file.file} \("):
            module.setup()
        (module.root / path).write_bytes(content)


def test_a_missing_image_is_named(case: Case, tmp_path: Path) -> None:
    module = case.module(case.write(tmp_path), image_size=16)
    samples = module.read()[1]
    count, gone = sum(map(len, samples.values())), samples["test"][4].path
    gone.unlink()
    with pytest.raises(CxlpError, match=f"1 of {count} images are missing, such as {gone}"):
        module.setup()


def test_unlisted_images_are_counted(case: Case, tmp_path: Path) -> None:
    module = case.module(case.write(tmp_path), image_size=16)
    module.setup()
    unlisted = module.left_out["images in no list"]
    assert unlisted == (3 if isinstance(module, MIT67) else 0)
    extra = module.splits["train"].samples[0].path
    below = Path(*extra.relative_to(module.root).parts[:1])
    for name in (extra.with_name("extra.jpg"), extra.with_name("no suffix"), module.root / below / "new" / "a.jpg"):
        name.parent.mkdir(exist_ok=True)
        shutil.copy(extra, name)
    extra.with_name("notes.txt").write_text("no picture")
    shutil.copy(extra, extra.with_name("._x.jpg"))
    again = case.module(module.root, image_size=16)
    again.setup()
    assert again.remarks() == [f"left out of {module.root}: {unlisted + 3} images in no list"]


def test_line_endings_do_not_matter(case: Case, tmp_path: Path) -> None:
    folder = case.write(tmp_path)
    before = case.module(folder).read()
    for change in (windows_ends, str.strip, lambda text: text.replace("\r", "")):
        for path in folder.rglob("*.txt"):
            edit(path, lambda text, change=change: change(text.removeprefix("\ufeff")))  # type: ignore[misc]
        assert case.module(folder).read() == before


def test_the_root_is_found_one_level_up_or_down(case: Case, tmp_path: Path) -> None:
    root = case.write(tmp_path / "devkit")
    (root.parent / "another").mkdir()
    below = next(path for path in sorted(root.iterdir()) if path.is_dir())
    for given in (root, root.parent, below):
        assert case.module(given).root == root
    shutil.copytree(root, root.parent / "copy")
    assert case.module(root.parent).root == root.parent, "it is unknown which of the two is right"
