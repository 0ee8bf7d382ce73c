"""Stored features are reused; incomplete or different ones are computed again."""

import os
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from PIL import Image

from cxlp.data.decode import read_image
from cxlp.frozen.cache import Entry, clean
from cxlp.frozen.config import FrozenConfig
from cxlp.heads import CrossLayerPooling, Head
from cxlp.heads.views import Views
from cxlp.tasks import Frozen
from cxlp.utils.errors import CxlpError
from tests.tasks.small import assert_equal, network, pictures, reuse, state, trainer


def fit_with(store: Path, folder: Path, place: Path, head: Head | None = None, seed: int = 0, **options: Any) -> Frozen:
    """Fit and test with a store of features; the same initial weights each time."""
    config = FrozenConfig(store=str(store), **options)
    data = pictures(folder, validation=0.25)
    built = network(head)
    if seed:
        torch.manual_seed(seed)
        torch.nn.init.normal_(built.get_parameter("backbone.trunk.conv1.0.weight"))
    task = Frozen(built, config, reuse=reuse(config, data))
    run = trainer(place, max_epochs=1)
    run.fit(task, data)
    run.test(task, data, verbose=False)
    return task


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Record the decoded pictures."""
    seen: list[Path] = []

    def watched(path: Path, *args: Any) -> Any:
        seen.append(path)
        return read_image(path, *args)

    monkeypatch.setattr("cxlp.data.dataset.read_image", watched)
    return seen


@pytest.fixture(scope="module")
def stored(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Frozen]:
    """A store, and the fit that filled it."""
    place = tmp_path_factory.mktemp("stored")
    return place / "store", fit_with(place / "store", folder, place)


def test_stored_features_are_reused(
    stored: tuple[Path, Frozen], folder: Path, tmp_path: Path, decoded: list[Path]
) -> None:
    store, first = stored
    again = fit_with(store, folder, tmp_path)
    assert_equal(state(first.network), state(again.network))
    assert first.trainer.callback_metrics == again.trainer.callback_metrics
    fit_with(store, folder, tmp_path, c=3.0, folds=2)  # other SVMs on the same features
    os.utime(next(folder.rglob("train/*/*.png")), ns=(0, 0))
    fit_with(store, folder, tmp_path)  # of the same pictures, with any dates
    assert decoded == []
    trainer(tmp_path).validate(again, pictures(folder, validation=0.25, image_size=32), verbose=False)
    assert len(decoded) == 3  # outside a fit or a test, pictures are decoded


@pytest.mark.parametrize("change", ["weights", "representation", "picture", "pca_vectors"])
def test_changed_dependencies_recompute_features(
    stored: tuple[Path, Frozen], folder: Path, tmp_path: Path, decoded: list[Path], change: str
) -> None:
    head: Head | None = None
    options: dict[str, Any] = {}
    picture = next(folder.rglob("train/*/*.png"))
    content, date = picture.read_bytes(), picture.stat().st_mtime_ns
    if change == "weights":
        options = {"seed": 1}
    elif change == "representation":
        head = CrossLayerPooling(pca_dim=4, sqrt=False)
    elif change == "picture":
        Image.open(picture).rotate(180).save(picture)
        os.utime(picture, ns=(date, date))  # an unreadable file
    else:
        options = {"pca_vectors": 13}
    fit_with(stored[0], folder, tmp_path, head, **options)
    picture.write_bytes(content)
    assert len(decoded) == 9 + 3 + 6  # the features of test images depend on the training images, through the PCA


def test_incomplete_features_of_a_killed_run_are_deleted(folder: Path, tmp_path: Path, decoded: list[Path]) -> None:
    store = tmp_path / "store"
    fit_with(store, folder, tmp_path)
    (entry,) = store.iterdir()
    whole = sorted(p.name for p in entry.iterdir())
    assert [name.split("-")[0] for name in whole] == ["entry.json", "features.bin", "heads.pt", "test", "val"]
    shutil.copytree(entry, store / f".{entry.name}.1.part")  # as if a run had been killed before the renaming
    (store / f".{entry.name}.1.lock").touch()
    (entry / "entry.json").unlink()  # or while the user deleted the store
    (entry / f".{whole[3].removesuffix('.bin')}.1.part").touch()
    decoded.clear()
    fit_with(store, folder, tmp_path)
    assert len(decoded) == 9 + 3 + 6
    assert sorted(str(p.relative_to(store)) for p in store.rglob("*") if p.is_file()) == [
        f"{entry.name}/{name}" for name in whole
    ]


def test_features_that_another_run_is_writing_are_kept(tmp_path: Path) -> None:
    one, other = Entry(tmp_path, lambda: {"a": 1}), Entry(tmp_path, lambda: {"a": 1})
    first, second = one.begin(), other.begin()
    assert first.is_dir() and second.is_dir() and first != second
    with pytest.raises(CxlpError, match="a run is writing into"):
        clean(tmp_path)
    (first / "features.bin").write_text("x")
    mine, others = network(), network()
    torch.nn.init.normal_(others.get_parameter("heads.0.projection.weight"))  # of other random weights
    one.commit(mine, {"seconds": {"PCA": 1.0}})
    assert one.complete and other.complete and (one.folder / "features.bin").read_text() == "x"
    other.commit(others, {})  # too late: the first one's are kept
    left = sorted(p.name for p in tmp_path.rglob("*"))
    assert left == sorted([one.folder.name, "entry.json", "features.bin", "heads.pt"])
    # so features of other runs are neither read nor written
    assert other.was_computed_by(mine) and not other.was_computed_by(others)
    assert other.facts()["seconds"] == {"PCA": 1.0}
    (tmp_path / "thesis").mkdir()
    clean(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis"]


@pytest.mark.parametrize("options", [{"num_sanity_val_steps": 1}, {"limit_val_batches": 1}])
def test_a_part_of_the_images_or_an_unfitted_network_is_not_stored(
    folder: Path, tmp_path: Path, options: dict[str, Any], decoded: list[Path]
) -> None:
    def validate(place: Path, store: Path, **options: Any) -> Any:
        run = trainer(place, max_epochs=1, **options)
        config, data = FrozenConfig(store=str(store)), pictures(folder, validation=0.25, batch_size=2)
        run.fit(Frozen(network(), config, reuse=reuse(config, data)), data)
        return run.callback_metrics

    expected = validate(tmp_path, tmp_path / "other")
    validate(tmp_path, tmp_path / "store", **options)
    decoded.clear()
    assert validate(tmp_path, tmp_path / "store") == expected
    assert len(decoded) == (3 if "limit_val_batches" in options else 0)


def test_packed_signs_give_the_same_weights(folder: Path, tmp_path: Path) -> None:
    def signs() -> Head:
        return CrossLayerPooling(pca_dim=4, sign=True)

    whole = fit_with(tmp_path / "whole", folder, tmp_path, signs())
    packed = fit_with(tmp_path / "packed", folder, tmp_path, signs(), features="sign")
    assert whole.network.classifier is not None and packed.network.classifier is not None
    torch.testing.assert_close(packed.network.classifier.weight, whole.network.classifier.weight, atol=1e-5, rtol=1e-4)
    sizes = [sum(p.stat().st_size for p in (tmp_path / n).rglob("*.bin")) for n in ("whole", "packed")]
    assert sizes[0] == 16 * sizes[1]
    again = fit_with(tmp_path / "packed", folder, tmp_path, signs(), features="sign")
    for name, value in packed.trainer.callback_metrics.items():
        torch.testing.assert_close(again.trainer.callback_metrics[name], value)


def test_half_precision_is_half_the_size(folder: Path, tmp_path: Path) -> None:
    task = fit_with(tmp_path / "store", folder, tmp_path, features="float16")
    sizes = sorted(p.stat().st_size for p in (tmp_path / "store").rglob("*.bin"))
    width = task.network.out_features
    assert sizes == sorted([9 * width * 2, 3 * width * 4, 6 * width * 4])  # scored features have full precision
    exact = fit_with(tmp_path / "exact", folder, tmp_path)
    assert task.network.classifier is not None and exact.network.classifier is not None
    torch.testing.assert_close(task.network.classifier.weight, exact.network.classifier.weight, atol=1e-2, rtol=0)
    assert not torch.equal(task.network.classifier.weight, exact.network.classifier.weight)
    raw = CrossLayerPooling(pca_dim=4, l2=False)
    with pytest.raises(CxlpError, match=r"model\.frozen\.features is float16"):
        fit_with(tmp_path / "raw", folder, tmp_path, raw, features="float16")


def test_two_bits_are_refused_for_values_other_than_signs(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CxlpError, match=r"features is sign, but .* sign: true and l2: true"):
        fit_with(tmp_path / "store", folder, tmp_path, features="sign")


def test_means_of_signs_are_not_stored_as_signs(folder: Path, tmp_path: Path) -> None:
    config = FrozenConfig(store=str(tmp_path / "store"), features="sign")
    losses = []
    for _ in range(2):
        data = pictures(folder)
        built = network(CrossLayerPooling(pca_dim=4, sign=True), test_views=Views("flip"))
        task = Frozen(built, config, reuse=reuse(config, data))
        run = trainer(tmp_path, max_epochs=1)
        run.fit(task, data)
        losses.append(run.test(task, data, verbose=False)[0]["test/loss"])
    assert losses[0] == losses[1]


def test_test_views_apply_to_scored_images_only(folder: Path, tmp_path: Path) -> None:
    """Training pictures have the network's size, others the size of crops; the key of stored features includes both."""
    found = []
    config = FrozenConfig(store=str(tmp_path / "store"))
    kinds: tuple[Literal["whole", "crops"], ...] = ("whole", "crops", "crops")
    for kind in kinds:
        data, built = pictures(folder), network(test_views=Views(kind))
        task = Frozen(built, config, reuse=reuse(config, data, built.image_size, built.test_size))
        run = trainer(tmp_path, max_epochs=1)
        run.fit(task, data)
        sizes = {split: data.splits[split].transform.size for split in ("train", "val", "test")}
        assert sizes == {"train": 32, "val": 36 if kind == "crops" else 32, "test": 36 if kind == "crops" else 32}
        found.append(run.test(task, data, verbose=False)[0]["test/loss"])
    assert found[0] != found[1] == found[2]
    assert len(list((tmp_path / "store").glob("*/test-*.bin"))) == 2  # of one training row
