"""The frozen mode under a Trainer: nothing moves but the solution, one pass whole, and nothing half-made is left."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import pytorch_lightning as pl
import torch

from cxlp.backbones.backbone import BackboneConfig
from cxlp.data.decode import read_image
from cxlp.data.folder import Folder
from cxlp.frozen.cache import Entry, clean
from cxlp.frozen.fit import FrozenConfig, FrozenFit
from cxlp.heads import CrossLayerPooling, Head
from cxlp.heads.views import Views
from cxlp.tasks import Frozen
from cxlp.tasks.feature_reuse import FeatureReuse
from cxlp.utils.errors import CxlpError
from tests.tasks.small import assert_equal, network, pictures, state, trainer


class Watch(pl.Callback):
    """Notes the modes of the network and of all its parts, and what of it takes gradients."""

    def __init__(self) -> None:
        self.training: list[bool] = []
        self.gradients: list[set[str]] = []

    def note(self, task: pl.LightningModule) -> None:
        assert isinstance(task, Frozen)
        self.training += [module.training for module in task.network.modules()]
        self.gradients.append({name for name, p in task.network.named_parameters() if p.requires_grad})

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.note(pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.note(pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.note(pl_module)  # after validation


def test_the_network_evaluates_and_its_backbone_takes_no_gradients(folder: Path, tmp_path: Path) -> None:
    task = Frozen(network())
    watch = Watch()
    task.network.get_parameter("backbone.trunk.conv1.0.weight").requires_grad_(False)
    before = {name for name, p in task.network.named_parameters() if p.requires_grad}
    backbone = {k: v.clone() for k, v in task.network.backbone.state_dict().items()}
    trainer(tmp_path, max_epochs=1, callbacks=[watch]).fit(task, pictures(folder, validation=0.25))
    assert watch.training and not any(watch.training)
    # while the head keeps its own: DDP refuses a module without any
    heads = {"heads.0.projection.weight", "classifier.weight"}
    assert all(heads <= names and not any(name.startswith("backbone") for name in names) for names in watch.gradients)
    # and the backbone has its own again: it may be trained next
    assert {name for name, p in task.network.named_parameters() if p.requires_grad} == before
    assert any(name.startswith("backbone") for name in before)
    for key, value in task.network.backbone.state_dict().items():
        assert torch.equal(value, backbone[key]), key  # BatchNorm's statistics, too


def test_one_pass_is_the_fit_and_validation_sees_its_solution(folder: Path, tmp_path: Path) -> None:
    task = Frozen(network())
    run = trainer(tmp_path, max_epochs=5)
    run.fit(task, pictures(folder, validation=0.25))
    assert run.current_epoch == 1
    assert task.network.classifier is not None and task.network.classifier.weight.any()
    assert run.callback_metrics["val/loss"] < torch.log(torch.tensor(3.0))  # that of no opinion at all
    assert {k: float(run.callback_metrics[f"frozen/{k}"]) for k in task.report} == pytest.approx(task.report)
    assert {"extraction", "validation", "SVM"} <= task.times.keys()


def test_the_solution_does_not_depend_on_the_batch_size(folder: Path, tmp_path: Path) -> None:
    found = []
    for size in (4, 5, 12):  # of twelve
        task = Frozen(network())
        trainer(tmp_path, max_epochs=1).fit(task, pictures(folder, batch_size=size))
        found.append(task.network.classifier)
    for other in found[1:]:
        assert found[0] is not None and other is not None
        torch.testing.assert_close(other.weight, found[0].weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("interval", [1, 0.5])
def test_validation_within_the_pass_is_refused(folder: Path, tmp_path: Path, interval: float) -> None:
    run = trainer(tmp_path, max_epochs=1, val_check_interval=interval)
    with pytest.raises(CxlpError, match=rf"val_check_interval is {interval}: the frozen fit has nothing to validate"):
        run.fit(Frozen(network()), pictures(folder, validation=0.25))
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize("interval", [1.0, 3])
def test_validation_behind_the_pass_may_be_asked_for(folder: Path, tmp_path: Path, interval: float) -> None:
    run = trainer(tmp_path, max_epochs=1, val_check_interval=interval)
    run.fit(Frozen(network()), pictures(folder, validation=0.25))  # nine images: three batches
    assert torch.isfinite(run.callback_metrics["val/loss"])


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Lightning ignores further interruptions after the first one: undo that."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("kept", [False, True])
def test_an_interrupted_pass_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], kept: bool
) -> None:
    step = Frozen.training_step
    there: list[set[str]] = []

    def interrupted(task: Frozen, batch: Any, batch_idx: int) -> None:
        step(task, batch, batch_idx)
        if batch_idx == 1:
            there.append({p.name for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".lock"})
            raise error

    monkeypatch.setattr(Frozen, "training_step", interrupted)
    data = pictures(folder)
    config = FrozenConfig(store=str(tmp_path / "store") if kept else None)
    task = Frozen(network(), config, reuse=reuse(config, data) if kept else None)
    with pytest.raises((error, SystemExit)):
        trainer(tmp_path, max_epochs=1).fit(task, data)
    assert there == [{"features.bin", "maps-0.bin"}]
    # half the features are of no use, even to those who want them kept
    assert [p.name for p in tmp_path.rglob("*")] == (["store"] if kept else [])


def test_an_error_while_solving_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise MemoryError("no room for the Gram matrix")

    monkeypatch.setattr(FrozenFit, "_fit_classifier", refuse)
    with pytest.raises(MemoryError):
        trainer(tmp_path, max_epochs=1).fit(Frozen(network()), pictures(folder))
    assert list(tmp_path.iterdir()) == []


class StopEarly(pl.Callback):
    """Ends an epoch after its first batch, as a time limit may."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.should_stop = True


def test_a_pass_that_is_stopped_early_is_refused(folder: Path, tmp_path: Path) -> None:
    task = Frozen(network())
    with pytest.raises(CxlpError, match="stopped before it had seen each training image"):
        trainer(tmp_path, max_epochs=1, callbacks=[StopEarly()]).fit(task, pictures(folder))
    assert list(tmp_path.iterdir()) == []
    assert not task.network.classifier.weight.any()  # type: ignore[union-attr]


@pytest.mark.parametrize("option", [{"limit_train_batches": 2}, {"fast_dev_run": True}], ids=str)
def test_a_part_of_the_images_is_refused(folder: Path, tmp_path: Path, option: dict[str, Any]) -> None:
    with pytest.raises(CxlpError, match=r"needs each training image, 3 batches of them, and was given [12]"):
        trainer(tmp_path, max_epochs=1, **option).fit(Frozen(network()), pictures(folder))
    assert list(tmp_path.iterdir()) == []


# --- features that are kept


def reuse(config: FrozenConfig, data: Folder, size: int = 32, test_size: int | None = None) -> FeatureReuse:
    """Features of some data, whose pictures have the network's size."""
    data.setup()
    data.resize(size, test_size)
    return FeatureReuse(config, data)


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
    """Which pictures are decoded."""
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


def test_what_is_stored_is_not_made_again(
    stored: tuple[Path, Frozen], folder: Path, tmp_path: Path, decoded: list[Path]
) -> None:
    store, first = stored
    again = fit_with(store, folder, tmp_path)
    assert_equal(state(first.network), state(again.network))
    assert first.trainer.callback_metrics == again.trainer.callback_metrics
    fit_with(store, folder, tmp_path, c=3.0, folds=2)  # other SVMs on the same features
    assert decoded == []


@pytest.mark.parametrize("change", ["weights", "representation", "picture", "pca_vectors"])
def test_what_features_depend_on_makes_them_again(
    stored: tuple[Path, Frozen], folder: Path, tmp_path: Path, decoded: list[Path], change: str
) -> None:
    head: Head | None = None
    options: dict[str, Any] = {}
    picture = next(folder.rglob("train/*/*.png"))
    date = picture.stat().st_mtime_ns
    if change == "weights":
        options = {"seed": 1}
    elif change == "representation":
        head = CrossLayerPooling(pca_dim=4, sqrt=False)
    elif change == "picture":
        os.utime(picture, ns=(0, 0))
    else:
        options = {"pca_vectors": 13}
    fit_with(stored[0], folder, tmp_path, head, **options)
    os.utime(picture, ns=(date, date))
    assert len(decoded) == 9 + 3 + 6  # the test images' features depend on the training images, by the PCA


def test_what_a_killed_run_left_is_neither_trusted_nor_kept(folder: Path, tmp_path: Path, decoded: list[Path]) -> None:
    store = tmp_path / "store"
    fit_with(store, folder, tmp_path)
    (entry,) = store.iterdir()
    whole = sorted(p.name for p in entry.iterdir())
    assert [name.split("-")[0] for name in whole] == ["entry.json", "features.bin", "heads.pt", "test", "val"]
    shutil.copytree(entry, store / f".{entry.name}.1.part")  # as if a run had died before the renaming
    (store / f".{entry.name}.1.lock").touch()
    (entry / "entry.json").unlink()  # or while somebody deleted the store
    (entry / f".{whole[3].removesuffix('.bin')}.1.part").touch()
    decoded.clear()
    fit_with(store, folder, tmp_path)
    assert len(decoded) == 9 + 3 + 6
    assert sorted(str(p.relative_to(store)) for p in store.rglob("*") if p.is_file()) == [
        f"{entry.name}/{name}" for name in whole
    ]


def test_what_another_run_is_writing_is_left_to_it(tmp_path: Path) -> None:
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
    other.commit(others, {})  # too late: the first one's is kept
    left = sorted(p.name for p in tmp_path.rglob("*"))
    assert left == sorted([one.folder.name, "entry.json", "features.bin", "heads.pt"])
    # so what others made is neither read nor written
    assert other.was_made_by(mine) and not other.was_made_by(others)
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


def test_packed_signs_give_the_weights_of_whole_numbers(folder: Path, tmp_path: Path) -> None:
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
    assert sizes == sorted([9 * width * 2, 3 * width * 4, 6 * width * 4])  # what is scored stays exact
    exact = fit_with(tmp_path / "exact", folder, tmp_path)
    assert task.network.classifier is not None and exact.network.classifier is not None
    torch.testing.assert_close(task.network.classifier.weight, exact.network.classifier.weight, atol=1e-2, rtol=0)
    assert not torch.equal(task.network.classifier.weight, exact.network.classifier.weight)
    raw = CrossLayerPooling(pca_dim=4, l2=False)
    with pytest.raises(CxlpError, match="float16, which overflows"):
        fit_with(tmp_path / "raw", folder, tmp_path, raw, features="float16")


def test_two_bits_are_refused_where_there_is_more_than_signs(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CxlpError, match=r"features is sign, but .* sign: true and l2: true"):
        fit_with(tmp_path / "store", folder, tmp_path, features="sign")


def test_kept_means_of_signs_are_no_signs(folder: Path, tmp_path: Path) -> None:
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


def test_test_views_are_of_scored_pictures_only(folder: Path, tmp_path: Path) -> None:
    """Training pictures have the network's size, the others that of which the crops are cut; kept features know."""
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
    assert len(list((tmp_path / "store").glob("*/test-*.bin"))) == 2  # of one training entry


class Repeated(pl.Callback):
    """Makes all test batches but the first one repeats, and notes the shapes of what comes out."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def on_test_batch_start(self, *arguments: Any) -> None:
        if arguments[3]:
            arguments[2]["repeat"][:] = True

    def on_test_batch_end(self, *arguments: Any) -> None:
        outputs = arguments[2]
        self.shapes.append((*outputs["score"].shape, len(outputs["label"]), len(outputs["index"])))


@pytest.mark.parametrize("name", ["timm/test_vit", "timm/test_resnet"])
def test_a_batch_of_repeats_alone_scores_nothing(folder: Path, tmp_path: Path, name: str) -> None:
    # as the last one of a rank may be; transformers take no batch of none
    layers = ("blocks.4", "blocks.5.mlp.act") if "vit" in name else ("layer3.0.conv2", "layer3")
    backbone = BackboneConfig(name, layers, weights=None, image_size=160)
    frozen, repeated = Frozen(network(backbone=backbone)), Repeated()
    run = trainer(tmp_path, max_epochs=1, callbacks=[repeated])
    run.fit(frozen, pictures(folder))
    run.test(frozen, pictures(folder), verbose=False)
    assert repeated.shapes == [(4, 3, 4, 4), (0, 3, 0, 0)]
