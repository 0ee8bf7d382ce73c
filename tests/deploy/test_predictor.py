"""Prediction in Python: equal to the test for all kinds of images; unreadable files do not stop a stream."""

import base64
import io
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import cxlp
from cxlp.data.decode import read_image
from cxlp.data.transforms import Aspect, AugmentConfig, Transform
from cxlp.deploy.loading import load
from cxlp.deploy.pictures import Picture
from cxlp.deploy.prediction import Prediction
from cxlp.deploy.predictor import Predictor
from cxlp.heads.views import Kind, Views
from cxlp.utils.errors import CxlpError
from tests.generate import write_folder, write_image
from tests.networks import SMALL, build, write_checkpoint

CLASSES = ("gull", "tern", "wren", "crow")


def predictor(multi_label: bool = False, aspect: Aspect = "warp") -> Predictor:
    """A network with a random classifier, the same at each call."""
    torch.manual_seed(0)
    network = build(backbone=SMALL, classes=CLASSES, multi_label=multi_label)
    assert network.classifier is not None
    nn.init.normal_(network.classifier.weight)
    return Predictor(network, aspect)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three kinds of pictures, larger than the network's input."""
    return write_folder(tmp_path_factory.mktemp("pictures"), train=4, test=2, size=40)


@pytest.fixture(scope="module")
def files(folder: Path) -> list[str]:
    return [str(path) for path in sorted((folder / "test").rglob("*.png"))]


# --- equality with the test


@pytest.mark.parametrize(("aspect", "views"), [("warp", "whole"), ("crop", "flip")])
def test_predictions_equal_the_scores_of_the_network(aspect: Aspect, views: Kind, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", train=0, test=2, size=40)
    files = sorted(root.rglob("*.png"))
    for path in files:  # higher than wide, so that the aspect matters
        write_image(path, read_image(path)[:, :36])
    network = build(backbone=SMALL, classes=CLASSES, test_views=Views(views))
    write_checkpoint(tmp_path / "last.ckpt", network, aspect)
    transform = Transform(network.test_size, aspect, AugmentConfig())  # as in a test
    with torch.no_grad():
        rows = network.score(torch.stack([transform(read_image(path), None) for path in files])).softmax(dim=1)

    model = load(tmp_path / "last.ckpt")
    found = model.predict(files, top=3, batch_size=4)
    assert model.classes == CLASSES
    for prediction, row in zip(found, rows, strict=True):
        order = row.argsort(descending=True)[:3]
        assert prediction.classes == tuple(CLASSES[k] for k in order)
        torch.testing.assert_close(torch.tensor(prediction.probabilities), row[order], rtol=1e-5, atol=1e-6)


def test_a_runs_folder_loads_its_best_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    write_checkpoint(tmp_path / "checkpoints" / "best.ckpt", build(backbone=SMALL, classes=CLASSES), "crop")
    assert load(tmp_path).transform.aspect == "crop"
    assert load(tmp_path / "checkpoints").transform.aspect == "crop"
    (tmp_path / "other").mkdir()
    with pytest.raises(CxlpError, match=r"other has no checkpoints/best\.ckpt"):
        load(tmp_path / "other")


def test_bytes_and_floats_of_an_image_agree(files: list[str]) -> None:
    model = predictor()
    picture = model.picture(files[0])[None]
    torch.testing.assert_close(model.probabilities(picture / 255), model.probabilities(picture), rtol=1e-4, atol=1e-5)


def test_several_labels_are_sigmoids(files: list[str]) -> None:
    model = predictor(multi_label=True)
    picture = model.picture(files[0])
    with torch.no_grad():
        expected = model.network.score(picture[None])[0].sigmoid()
    found = model.predict(files[0])
    assert dict(zip(found.classes, found.probabilities, strict=True)) == pytest.approx(
        dict(zip(CLASSES, expected.tolist(), strict=True)), abs=1e-6
    )
    assert list(found.probabilities) == sorted(found.probabilities, reverse=True)
    assert sum(found.probabilities) != pytest.approx(1, abs=1e-3)


# --- types of inputs


def test_a_file_a_pillow_image_and_an_array_agree(files: list[str]) -> None:
    model = predictor()
    by_file = model.predict(Path(files[0]))
    assert by_file.path == files[0] and by_file.error == ""
    pixels = read_image(Path(files[0]))
    for same in (pixels, Image.open(files[0]), Image.fromarray(pixels).convert("RGBA")):
        assert model.predict(same) == replace(by_file, path="")


def test_a_pillow_image_is_rotated_upright(files: list[str], tmp_path: Path) -> None:
    stored = Image.open(files[0])
    turned = stored.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    model = predictor()
    with Image.open(tmp_path / "turned.png") as image:
        assert torch.equal(model.picture(image), model.picture(stored))


def test_arrays_and_tensors_of_each_kind_agree(files: list[str]) -> None:
    model = predictor()
    pixels = read_image(Path(files[0]))
    expected, picture = model.picture(pixels), torch.from_numpy(pixels).permute(2, 0, 1)
    alpha = np.full((*pixels.shape[:2], 1), 9, np.uint8)
    for same in (
        *(pixels / 255, (pixels / 255).astype(np.float32), np.concatenate([pixels, alpha], axis=2)),
        *(picture, picture / 255, (picture / 255).double().requires_grad_(), (picture / 255) * (1 + 1e-5)),
    ):
        assert torch.equal(model.picture(same), expected)
    grey = pixels[..., 0]
    expected = model.picture(np.stack([grey] * 3, axis=2))
    for other in (grey, grey[..., None], torch.from_numpy(grey)[None], Image.fromarray(grey)):
        assert torch.equal(model.picture(other), expected)
    model.picture(torch.rand(3, 40, 20, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (np.zeros((0, 8, 3), "u1"), r"an array of shape \(0, 8, 3\): .*\(H, W, 3\), RGB$"),
        (np.zeros((3, 8, 8), "u1"), r"\(3, 8, 8\): pass \(H, W, 3\), RGB \(transpose "),
        (np.zeros((8, 8, 3), "i8"), "int64: .*uint8"),
        (np.full((8, 8, 3), 2.0), r"values from 2 to 2, .*0\.\.1"),
        (np.full((8, 8, 3), np.nan), "values from nan to nan"),
        (torch.randn(3, 8, 8), r"values from -\d.*Normalize"),
        (torch.zeros(8, 8, 3), r"a tensor of shape \(8, 8, 3\): .*\(3, H, W\)"),
        ([None], "the image is a NoneType: .*path"),
        ([3], "the image is a int: .*path"),
    ],
)
def test_inputs_that_are_not_images_are_refused(wrong: Any, said: str) -> None:
    for method in (predictor().predict, predictor().embed, predictor().explain):
        with pytest.raises(CxlpError, match=said):
            method(wrong)


def test_folders_patterns_and_batches_return_lists(folder: Path, files: list[str]) -> None:
    model = predictor()
    expected = model.predict(files)
    assert [each.path for each in expected] == files
    test = folder / "test"
    ways: list[Any] = [test, f"{test}/**/*.png", iter(files), [test], tuple(map(Path, files)), np.array(files)]
    for several in ways:
        assert model.predict(several) == expected
    pictures = [read_image(Path(file)) for file in files]
    batch = np.stack(pictures)
    tensors = torch.from_numpy(batch).permute(0, 3, 1, 2)
    loader: Any = torch.utils.data.DataLoader(tensors, batch_size=4)  # type: ignore[arg-type] # has length and items
    ways = [pictures, batch, tensors, loader, [tensors[:2], *pictures[2:]], map(Image.fromarray, pictures)]
    for several in ways:
        found = model.predict(several)
        assert [each.classes for each in found] == [each.classes for each in expected]
        assert [each.path for each in found] == [""] * len(files)
    assert model.embed(batch) == pytest.approx(model.embed(folder / "test"), abs=1e-5)
    assert cxlp.list_images(folder / "test") == files
    found = [model.predict([test], batch_size=2), model.explain([test])]
    assert [len(each) for each in found] == [len(files)] * 2
    (folder / "empty").mkdir()
    with pytest.raises(CxlpError, match="empty is a folder"):
        model.predict(folder / "empty")


# --- representation


def test_predictions_have_a_representation(files: list[str]) -> None:
    model = predictor()
    found = model.predict(files * 5, top=2)
    lines = repr(found).splitlines()
    assert lines[0] == f"{len(files) * 5} predictions" and lines[-1] == f"  ... {len(files) * 5 - 20} more"
    assert files[0] in lines[1] and f"{found[0].classes[0]} {found[0].probabilities[0]:.2%}" in lines[1]
    assert isinstance(found[1:3], type(found)) and len(found[1:3]) == 2
    assert repr(found[0]) == f"Prediction({files[0]!r}: {lines[1].split(files[0])[1].strip()})"
    html = found._repr_html_()
    assert html.count("<img ") == 24 and f"... {len(files) * 5 - 24} more" in html
    picture = base64.b64decode(html.partition("base64,")[2].partition('"')[0])
    assert Image.open(io.BytesIO(picture)).size == (40, 40)
    own = Prediction("<b>", ("<i>",), (0.5,), image=files[0])._repr_html_()
    assert "&lt;b&gt;" in own and "&lt;i&gt;" in own and "<i>" not in own
    assert "<img" not in Prediction("gone.png", error="image not found", image="gone.png")._repr_html_()
    assert repr(Prediction("gone.png", error="image not found")) == "Prediction('gone.png': image not found)"


def test_explanations_add_up_and_have_a_representation(files: list[str], tmp_path: Path) -> None:
    model = predictor()
    one, several = model.explain(files[0]), model.explain(files, target="wren", against="crow", channels=2)
    best = model.predict(files[0])
    assert (one.target, one.path) == (best.classes[0], files[0])
    assert one.probability == pytest.approx(best.probabilities[0], abs=1e-5)
    scores = model.network(model.picture(files[0])[None])[0]
    assert several[0].score == pytest.approx(float(scores[2] - scores[3]), abs=1e-4)
    assert (several[0].target, several[0].against, len(several[0].strongest)) == ("wren", "crow", 2)
    assert one.map().shape == (32, 32) and one.map(7).shape == (7, 7)
    assert one.map(64).mean() == pytest.approx(one.explanation.evidence * one.explanation.cell, rel=1e-3)
    one.save(tmp_path / "why.png")
    assert (tmp_path / "why.png").read_bytes() == one._repr_png_() and Image.open(tmp_path / "why.png").width > 500
    assert f"{one.target} {one.probability:.2%}, score" in repr(one) and "wren" in repr(several).splitlines()[1]
    assert several[:2]._repr_html_().count("<img ") == 2
    with pytest.raises(CxlpError, match=r"the network has no class 'wrenn'\. Did you mean 'wren'"):
        model.explain(files[0], "wrenn")
    model.classes = ("001.Sooty_tern", "002.House_wren")  # both spellings are known
    assert [model.index(name) for name in ("House wren", "002.House_wren", "Sooty tern")] == [1, 1, 0]
    model.classes = ("gull", "tern", "wren")
    with pytest.raises(CxlpError, match="target and against are both 'wren'"):
        model.explain(files[0], "wren", "wren")


def test_a_predictor_has_a_representation() -> None:
    said = repr(predictor(multi_label=True))
    assert "4 classes, several per image (gull, tern, wren, ...)" in said
    assert "CrossLayerPooling(pca_dim=6)" in said and "images of 32 x 32 pixels (warp), on cpu, precision 32" in said


def test_a_list_keeps_its_order_whatever_the_batch(files: list[str]) -> None:
    model = predictor()
    given: list[Picture] = [files[3], files[0], read_image(Path(files[5])), files[1]]
    whole, by_two = model.predict(given, top=2, batch_size=4), model.predict(iter(given), top=2, batch_size=3)
    assert [p.path for p in whole] == [p.path for p in by_two] == [files[3], files[0], "", files[1]]
    for one, other, alone in zip(whole, by_two, given, strict=True):
        assert one.classes == other.classes == model.predict(alone, top=2).classes
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)
        assert len(one.classes) == 2
    assert model.predict([]) == []


def test_each_method_uses_the_folded_network(files: list[str]) -> None:
    model = predictor()
    slow = build(backbone=SMALL, classes=CLASSES).backbone.eval()
    slow.load_state_dict(model.network.backbone.state_dict())
    images = torch.stack([model.picture(path) for path in files])
    backbone = model.network.backbone
    with torch.no_grad():
        assert not torch.equal(
            backbone(images)[0], slow(images)[0]
        )  # one convolution rounds differently from two steps
    assert model.predict(files) == list(model.stream(files, batch_size=32))
    assert np.array_equal(model.embed(files), model.features(images).numpy())
    made = backbone._holds[0].made
    assert made is not None and len(backbone._holds) == 1  # one copy processes all of it
    stream = model.stream(files, batch_size=2)
    next(stream)
    before = model.features(images)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1)
    assert not torch.equal(before, model.features(images))


def test_top_is_limited_to_the_number_of_classes(files: list[str]) -> None:
    found = predictor().predict(files[0], top=99)
    assert set(found.classes) == set(CLASSES)
    assert sum(found.probabilities) == pytest.approx(1, abs=1e-6)


def test_an_unreadable_file_is_an_error_in_python(files: list[str], tmp_path: Path) -> None:
    with pytest.raises(CxlpError, match=r"image not found: .*none\.png"):
        predictor().predict([files[0], str(tmp_path / "none.png")])


# --- streams


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_files_get_an_error_and_do_not_stop_the_stream(
    files: list[str], workers: int, tmp_path: Path
) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.jpg").touch()
    Image.fromarray(read_image(Path(files[0]))).save(tmp_path / "cut.jpg")
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "folder.jpg").mkdir()
    bad = {
        str(tmp_path / "text.jpg"): "cannot decode image .*text.jpg.*10 bytes",
        str(tmp_path / "empty.jpg"): "cannot decode image .*empty.jpg.*0 bytes",
        str(tmp_path / "cut.jpg"): "cannot decode image .*cut.jpg.*truncated",
        str(tmp_path / "folder.jpg"): "folder.jpg is a folder",
        str(tmp_path / "none.jpg"): "image not found: .*none.jpg",
        str(tmp_path / ("x" * 300)): "too long",
        "a\0b.jpg": "null",
    }
    order = [*files[:2], *bad, *files[2:]]
    model = predictor()
    found = list(model.stream(order, top=2, batch_size=3, workers=workers))  # one batch has invalid files only
    assert [p.path for p in found] == order
    expected = {p.path: p for p in model.predict(files, top=2)}
    for p in found:
        if p.path in bad:
            assert p.classes == () and p.probabilities == ()
            assert re.search(bad[p.path], p.error), p.error
        else:
            assert p.error == "" and p.classes == expected[p.path].classes
            assert p.probabilities == pytest.approx(expected[p.path].probabilities, abs=1e-6)


def test_a_stream_reads_paths_lazily(files: list[str]) -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        for path in itertools.cycle(files):
            taken += 1
            yield path

    first = list(itertools.islice(predictor().stream(endless(), batch_size=2), 5))
    assert [p.path for p in first] == files[:5]
    assert taken == 6


# --- device and precision


def test_half_precision_is_close_and_its_probabilities_are_full(files: list[str]) -> None:
    full = predictor()
    half = Predictor(full.network, precision="bf16")
    images = torch.stack([full.picture(path) for path in files])
    exact, rounded = full.probabilities(images), half.probabilities(images)
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.02)
    torch.testing.assert_close(rounded.sum(dim=1), torch.ones(len(files)))
    with pytest.raises(CxlpError, match="precision is '16'; valid: 32, bf16"):
        Predictor(full.network, precision="16")  # type: ignore[arg-type]


def test_devices() -> None:
    model = predictor()
    assert model.to("auto") is model
    assert model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    for wrong in ("cuda:99", "quantum"):
        with pytest.raises(CxlpError, match=f"device '{wrong}' cannot be used"):
            predictor().to(wrong)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_has_the_same_predictions(files: list[str]) -> None:
    here, there = predictor().predict(files), predictor().to("cuda").predict(files)
    for one, other in zip(here, there, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=5e-3)  # TF32


def test_a_network_without_classes_gives_features_only(files: list[str]) -> None:
    model = Predictor(build(backbone=SMALL))
    assert model.embed(files).shape == (len(files), model.network.out_features)
    for ask in (model.check_classes, lambda: model.predict(files)):
        with pytest.raises(CxlpError, match="no classes"):
            ask()


# --- the package


def test_importing_the_package_imports_no_slow_library() -> None:
    code = "import sys, cxlp; print({'torch', 'numpy', 'timm', 'pytorch_lightning'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "set()\n"


def test_the_public_names_exist() -> None:
    assert cxlp.load is load and cxlp.Predictor is Predictor and cxlp.Prediction is Prediction
    assert all(hasattr(cxlp, name) for name in cxlp.__all__)


@pytest.mark.parametrize("option", [{"top": 0}, {"top": -1}, {"batch_size": 0}], ids=str)
def test_numbers_below_one_are_refused(option: dict[str, int]) -> None:
    model = Predictor(build(backbone=SMALL, classes=["gull", "tern"]))
    with pytest.raises(CxlpError, match="1 or more"):
        model.predict([np.zeros((8, 8, 3), np.uint8)], **option)


def test_arguments_of_wrong_kinds_are_named(tmp_path: Path) -> None:
    with pytest.raises(CxlpError, match="checkpoint is a int: "):
        load(7)  # type: ignore[arg-type]
    for top in (0, "3", 1.5):
        with pytest.raises(CxlpError, match=f"top is {top!r}: "):
            predictor().predict(np.zeros((8, 8, 3), np.uint8), top=top)  # type: ignore[arg-type]
