"""The whole frozen fit on a small random network, compared with scikit-learn on all data in memory."""

import copy
import gc
import weakref
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.svm import SVC
from torch import Tensor

from cxlp.backbones.backbone import Backbone
from cxlp.frozen import fit as fit_module
from cxlp.frozen import solvers
from cxlp.frozen import svm as libsvm
from cxlp.frozen.config import FrozenConfig
from cxlp.frozen.fit import FrozenFit
from cxlp.frozen.gram import combine_rows, gram_matrix, score_rows
from cxlp.frozen.store import FeatureType, RowStore
from cxlp.frozen.svm import solve
from cxlp.heads import (
    AveragePooling,
    BilinearPooling,
    CovariancePooling,
    CrossLayerPooling,
    FisherVector,
    Head,
    SparseFisherVector,
    TrainedGuidePooling,
)
from cxlp.heads.operator import sub_arrays
from cxlp.heads.views import Views
from cxlp.models.network import Network
from cxlp.utils.errors import CxlpError
from cxlp.utils.profiling import PhaseTimes
from tests.full_disk import room_for

CLASSES = ("wren", "jay", "crow")
PER_CLASS = 7  # 21 images: batches and ranks have unequal sizes
ALL_VECTORS = 10**9  # more than the images have: the PCA uses each local feature


@cache
def _backbone(layers: tuple[str, ...], name: str) -> Backbone:
    torch.manual_seed(0)
    return Backbone(name, layers, weights=None, image_size=64)


def cross(**options: Any) -> CrossLayerPooling:
    """Cross-layer pooling with a PCA to 6."""
    return CrossLayerPooling(**{"pca_dim": 6, **options})


def small_network(
    head: Head | Sequence[Head] | None = None,
    layers: tuple[str, ...] = ("features.3", "features.4"),
    name: str = "torchvision/squeezenet1_0",
    classes: Sequence[str] = CLASSES,
    multi_label: bool = False,
) -> Network:
    """Build a network with maps of 14 x 14 cells and 128 + 128 channels, with the same random weights in each call."""
    backbone, head = copy.deepcopy((_backbone(layers, name), head or cross()))
    torch.manual_seed(0)
    return Network(backbone, head, classes, multi_label).eval()


def small_images(per_class: int = PER_CLASS, classes: int = len(CLASSES)) -> tuple[Tensor, Tensor]:
    """Return shuffled images ``(n, 3, 64, 64)`` uint8, noise around a pattern of their class, and their labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat(per_class)[torch.randperm(classes * per_class, generator=generator)]
    patterns = torch.rand(classes, 3, 64, 64, generator=generator)
    noise = torch.rand(len(labels), 3, 64, 64, generator=generator)
    return (255 * (0.25 * patterns[labels] + 0.75 * noise)).to(torch.uint8), labels


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen fit that keeps no maps and features in memory."""
    monkeypatch.setattr(fit_module, "memory_for_maps", lambda: 0)


def run_fit(
    network: Network,
    folder: Path,
    config: FrozenConfig = FrozenConfig(pca_vectors=ALL_VECTORS),
    batches: Sequence[Tensor] | None = None,
    data: tuple[Tensor, Tensor] | None = None,
    keep: bool = False,
) -> dict[str, float]:
    """Fit to the small images, given as batches of indices."""
    images, labels = data or small_images()
    fit = FrozenFit(network, config, len(images), folder / "fit", PhaseTimes(), keep=keep)
    for positions in batches or torch.arange(len(images)).chunk(3):
        fit.observe(images[positions], labels[positions], positions)
    return fit.finish()


def weights(network: Network) -> dict[str, Tensor]:
    """Return the solution of the fit."""
    return {k: v.clone() for k, v in network.state_dict().items() if not k.startswith("backbone")}


def assert_same_weights(one: dict[str, Tensor], other: dict[str, Tensor], atol: float = 3e-4) -> None:
    """Check that two fits have the same solution, within rounding.

    Other batch sizes and numbers of threads round differently. The signed square root amplifies that near zero, and
    an SVM does for nearly equal rows: a difference of 8e-5 was observed.
    """
    assert one.keys() == other.keys()
    for name, expected in one.items():
        within = atol * max(1, expected.double().abs().max().item())  # double: the mark of a fitted head is a bool
        torch.testing.assert_close(other[name], expected, rtol=0, atol=within)


@pytest.mark.parametrize("size", [1, 3])
def test_the_projection_is_the_pca_of_all_sub_arrays(tmp_path: Path, size: int) -> None:
    network = small_network(cross(size=size))
    run_fit(network, tmp_path)
    with torch.no_grad():
        local, _ = network.backbone(small_images()[0])
    vectors = sub_arrays(local, size).flatten(0, 1).double().numpy()
    pca = PCA(6, svd_solver="covariance_eigh").fit(vectors)
    (head,) = network.heads
    assert isinstance(head, CrossLayerPooling) and head.projection is not None
    projection = head.projection
    axes = projection.weight.detach().flatten(1).double().numpy()
    signs = np.sign((axes * pca.components_).sum(axis=1))
    np.testing.assert_allclose(axes, signs[:, None] * pca.components_, atol=1e-4)
    # The projection by the convolution equals the transform of the PCA.
    projected = projection(local).flatten(2).transpose(1, 2).flatten(0, 1).detach().numpy()
    expected = signs * pca.transform(vectors)
    np.testing.assert_allclose(projected, expected, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("head", "layers"),
    [
        pytest.param(cross(), None, id="cross"),
        pytest.param(cross(size=3, stride=2, padding="same"), None, id="sub-arrays"),
        pytest.param(cross(pca_dim=None), None, id="without PCA"),
        pytest.param(cross(sign=True), None, id="signs"),
        pytest.param(BilinearPooling(pca_dim=6), None, id="bilinear"),
        pytest.param(BilinearPooling(pca_dim=None), None, id="bilinear without PCA"),
        pytest.param(AveragePooling(layers=["features.3"]), None, id="average of the lower layer"),
        pytest.param(AveragePooling(), None, id="average of the upper layer"),
        pytest.param(cross(channels=5), None, id="few channels"),
        pytest.param(cross(guide_dim=4), None, id="low-rank"),
        pytest.param(cross(guide_dim=4, pca_dim=None, channels=20), None, id="low-rank without PCA"),
        pytest.param(cross(sketch=300), None, id="compact"),
        pytest.param(BilinearPooling(pca_dim=6, guide_dim=8, sketch=40), None, id="bilinear, low-rank and compact"),
        pytest.param(cross(spectral=True, sqrt=False), None, id="matrix root"),
        pytest.param(cross(views=Views("blocks")), None, id="blocks"),
        pytest.param(AveragePooling(views=Views("crops")), None, id="crops"),
        pytest.param(CovariancePooling(pca_dim=6), None, id="covariance"),
        pytest.param(FisherVector(pca_dim=6, atoms=4), None, id="fisher"),
        pytest.param(
            SparseFisherVector(pca_dim=6, atoms=8, views=Views("regions", scale=1.2, stride=0.7)),
            None,
            id="sparse over regions",
        ),
        pytest.param(TrainedGuidePooling(pca_dim=6, channels=5), None, id="trained_guide"),
        pytest.param(cross(align="to_local"), ("features.4", "features.6"), id="two resolutions"),
        pytest.param([cross(), AveragePooling(), FisherVector(pca_dim=5, atoms=3)], None, id="several heads"),
    ],
)
def test_the_classifier_is_the_svm_of_the_features(
    tmp_path: Path, head: Head | list[Head], layers: tuple[str, str] | None
) -> None:
    network = small_network(head, layers or ("features.3", "features.4"))
    report = run_fit(network, tmp_path)
    images, labels = small_images()
    with torch.no_grad():
        features = network.features(images)
        margins = network(images).double() / report["logit_scale"]
    assert features.shape == (len(images), network.out_features)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(len(images)))
    for k in range(len(CLASSES)):
        svm = SVC(kernel="linear", C=report["C"], tol=1e-6).fit(features.double().numpy(), labels == k)
        np.testing.assert_allclose(margins[:, k], svm.decision_function(features.double().numpy()), atol=5e-3)
    assert report["train_accuracy"] == pytest.approx(float((margins.argmax(dim=1) == labels).double().mean()))
    assert report["logit_scale"] != 1.0
    if network.image_size == 64:  # enlarged small images have lost the pattern of their class
        assert 1 / 3 < report["cv_accuracy"] <= 1  # better than chance


@pytest.mark.parametrize("pca_vectors", [ALL_VECTORS, 21 * 40])
def test_batch_size_and_order_do_not_matter(tmp_path: Path, pca_vectors: int) -> None:
    config = FrozenConfig(pca_vectors=pca_vectors)
    found = []
    orders = (torch.arange(21).chunk(3), torch.randperm(21).chunk(21), torch.arange(20, -1, -1).chunk(1))
    for batches in orders:
        network = small_network()
        report = run_fit(network, tmp_path, config, batches)
        found.append((weights(network), report["cv_accuracy"]))
    for other, accuracy in found[1:]:
        assert_same_weights(found[0][0], other)
        assert accuracy == found[0][1]


def test_an_empty_batch_has_no_effect(tmp_path: Path) -> None:
    network, reference = small_network(), small_network()
    run_fit(reference, tmp_path)
    run_fit(network, tmp_path, batches=[torch.arange(0), *torch.arange(21).chunk(3), torch.arange(0)])
    assert_same_weights(weights(reference), weights(network))


def test_fewer_vectors_give_another_projection(tmp_path: Path) -> None:
    few, all_of_them = small_network(), small_network()
    run_fit(few, tmp_path, FrozenConfig(pca_vectors=21 * 2))
    run_fit(all_of_them, tmp_path)
    one, other = (dict(network.heads.named_parameters())["0.projection.weight"] for network in (few, all_of_them))
    assert not torch.allclose(one, other, atol=1e-3)


def test_no_files_are_left_on_the_disk(tmp_path: Path) -> None:
    run_fit(small_network(), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("on_disk")
@pytest.mark.parametrize(
    ("heads", "layers"),
    [
        ([cross()], 2),
        ([BilinearPooling(pca_dim=6)], 1),
        ([cross(channels=5), cross(pca_dim=3), FisherVector(pca_dim=4, atoms=2), AveragePooling()], 2),
    ],
    ids=["cross", "a layer under itself", "several heads"],
)
def test_each_map_is_on_disk_once_until_it_is_pooled(tmp_path: Path, heads: list[Head], layers: int) -> None:
    images, labels = small_images()
    fit = FrozenFit(small_network(heads), FrozenConfig(), len(images), tmp_path, PhaseTimes())
    fit.observe(images, labels, torch.arange(len(images)))
    assert (tmp_path / "maps-0.bin").stat().st_size == len(images) * 14 * 14 * layers * 128 * 4
    fit.close(keep=False)
    assert not any(tmp_path.glob("*.bin"))


@pytest.mark.parametrize(
    ("kind", "heads", "said"),
    [
        ("float16", [cross(), cross(l2=False)], "float16, which overflows"),
        ("sign", [cross()], "more than signs"),
        ("sign", [cross(sign=True), cross(sign=True)], "more than signs"),
    ],
)
def test_vectors_that_a_storage_type_cannot_represent_are_refused(
    tmp_path: Path, kind: FeatureType, heads: list[Head], said: str
) -> None:
    with pytest.raises(CxlpError, match=said):
        FrozenFit(small_network(heads), FrozenConfig(features=kind), 21, tmp_path, PhaseTimes())


def test_features_can_be_kept(tmp_path: Path) -> None:
    network = small_network()
    run_fit(network, tmp_path, batches=torch.randperm(21).chunk(4), keep=True)
    assert [p.name for p in (tmp_path / "fit").iterdir()] == ["features.bin"]
    kept = RowStore(tmp_path / "fit" / "features.bin", 21, network.out_features).read(0, 21)
    with torch.no_grad():
        expected = network.features(small_images()[0])
    torch.testing.assert_close(kept, expected, rtol=0, atol=1e-5)  # each image is in its own row


@pytest.mark.usefixtures("on_disk")
def test_maps_of_half_precision_are_pooled_in_full(tmp_path: Path) -> None:
    images, labels = small_images()
    network = small_network()
    fit = FrozenFit(network, FrozenConfig(), len(images), tmp_path, PhaseTimes(), keep=True)
    with torch.autocast("cpu", torch.bfloat16):
        fit.observe(images, labels, torch.arange(len(images)))
        expected_bytes = len(images) * 14 * 14 * (128 + 128) * 2
        assert (tmp_path / "maps-0.bin").stat().st_size == expected_bytes
        fit.finish()
        with torch.no_grad():
            expected = network.features(images)
    kept = RowStore(tmp_path / "features.bin", 21, network.out_features).read(0, 21)
    torch.testing.assert_close(kept, expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("on_disk")
@pytest.mark.parametrize("head", [cross(), AveragePooling()], ids=["maps", "features"])
def test_a_full_disk_is_reported_and_no_files_are_left(tmp_path: Path, head: Head) -> None:
    images, labels = small_images()
    network = small_network(head)
    fit = FrozenFit(network, FrozenConfig(), len(images), tmp_path / "fit", PhaseTimes(), progress=False)
    with room_for(1300):
        with pytest.raises(CxlpError, match="Is the disk full"):
            fit.observe(images, labels, torch.arange(len(images)))
        fit.close(keep=False)
    assert not (tmp_path / "fit").exists()


@pytest.mark.parametrize(
    ("batches", "seen"), [([torch.arange(19)], 19), ([torch.arange(21), torch.tensor([3])], 21)], ids=["few", "twice"]
)
def test_each_image_is_needed_once(tmp_path: Path, batches: list[Tensor], seen: int) -> None:
    with pytest.raises(CxlpError, match=f"21 training images once, .* {seen}: "):
        run_fit(small_network(AveragePooling()), tmp_path, batches=batches)


def test_more_dimensions_than_local_features_are_refused_before_the_pass(tmp_path: Path) -> None:
    config = FrozenConfig(pca_vectors=21)  # one per image
    with pytest.raises(CxlpError, match=r"PCA to 100 dimensions .* uses 1 .* 21 training images.*pca_dim"):
        FrozenFit(small_network(cross(pca_dim=100)), config, 21, tmp_path / "fit", PhaseTimes())
    assert not (tmp_path / "fit").exists()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"c": 0.0}, r"frozen\.c is 0\.0: a cost C is a number greater than 0"),
        ({"c": float("inf")}, r"frozen\.c is inf"),
        ({"c": float("nan")}, r"frozen\.c is nan"),
        ({"c_candidates": ()}, r"frozen\.c_candidates is empty"),
        ({"c_candidates": (1.0, -1.0)}, r"frozen\.c_candidates is \(1\.0, -1\.0\)"),
        ({"folds": 1}, r"frozen\.folds is 1: choose 2 to 100"),
        ({"folds": 1000}, r"frozen\.folds is 1000: choose 2 to 100"),
        ({"pca_vectors": 0}, r"frozen\.pca_vectors is 0"),
    ],
)
def test_invalid_option_values_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(CxlpError, match=said):
        FrozenConfig(**wrong)


def test_several_labels_per_image(tmp_path: Path) -> None:
    images, index = small_images()
    labels = torch.stack([1 - 2 * (index == 0), 1 - 2 * (index == 1)], dim=1)  # (n, 2) of {1, -1}
    labels[::5, 1] = 0
    network = small_network(classes=["not gull", "not tern"], multi_label=True)
    report = run_fit(network, tmp_path, data=(images, labels))
    assert 0.5 < report["cv_mAP"] <= 1 and "cv_accuracy" not in report
    with torch.no_grad():
        features = network.features(images).double().numpy()
        margins = network(images).double().numpy() / report["logit_scale"]
    for k, y in enumerate(labels.T.numpy()):
        svm = SVC(kernel="linear", C=10.0, tol=1e-6).fit(features[y != 0], y[y != 0])
        np.testing.assert_allclose(margins[:, k], svm.decision_function(features), atol=5e-3)


def test_a_class_with_a_single_image_leaves_the_scale_alone(tmp_path: Path) -> None:
    images, labels = small_images()
    alone = int((labels == 2).nonzero()[0])
    labels = torch.where(labels == 2, 1, labels)
    labels[alone] = 2
    network = small_network()
    with pytest.warns(UserWarning, match=r"fewer than two training images: .* stays 1"):
        report = run_fit(network, tmp_path, data=(images, labels))
    assert report == {"C": 10.0, "logit_scale": 1.0, "primal": 0.0}
    with torch.no_grad():  # the class is learnt nevertheless
        assert int(network(images)[alone].argmax()) == 2
    with pytest.raises(CxlpError, match=r"model\.frozen\.c: auto .*has 1: add images"):
        run_fit(small_network(), tmp_path, FrozenConfig(c="auto"), data=(images, labels))


def test_c_is_chosen_by_cross_validation(tmp_path: Path) -> None:
    candidates = (1e-4, 1.0, 10.0)
    chosen = small_network()
    report = run_fit(chosen, tmp_path, FrozenConfig("auto", candidates, 3, ALL_VECTORS))
    accuracies = [report[f"cv_accuracy_C{c:g}"] for c in candidates]
    for c, accuracy in zip(candidates, accuracies, strict=True):
        fixed = run_fit(small_network(), tmp_path, FrozenConfig(c, folds=3, pca_vectors=ALL_VECTORS))
        assert fixed["cv_accuracy"] == accuracy
    best = next(c for c, accuracy in zip(candidates, accuracies, strict=True) if accuracy == max(accuracies))
    assert report["C"] == best
    assert report["cv_accuracy"] == max(accuracies)
    given = small_network()
    run_fit(given, tmp_path, FrozenConfig(best, folds=3, pca_vectors=ALL_VECTORS))
    assert_same_weights(weights(given), weights(chosen))


def test_cores_are_shared_by_the_ranks_of_this_machine_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []

    def watched(gram: Any, targets: Any, c: float, count: int) -> Any:
        threads.append(count)
        return solve(gram, targets, c, count)

    monkeypatch.setattr(solvers, "usable_cores", lambda: 6)
    monkeypatch.setattr(solvers, "local_world_size", lambda: 2)
    monkeypatch.setattr(libsvm, "solve", watched)
    run_fit(small_network(), tmp_path)
    assert threads == [3, 3]  # the folds, and all images


def test_the_backbone_is_not_changed(tmp_path: Path) -> None:
    network = small_network(layers=("layer2.0", "layer2.1"), name="torchvision/resnet18")
    before = {k: v.clone() for k, v in network.backbone.state_dict().items()}
    assert any("running_mean" in name for name in before)
    head = weights(network)
    run_fit(network, tmp_path)
    for name, value in network.backbone.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in network.parameters())
    for name, value in weights(network).items():
        assert not torch.equal(value, head[name]), name  # the head did, however


def test_phases_are_timed(tmp_path: Path) -> None:
    times = PhaseTimes()
    images, labels = small_images()
    fit = FrozenFit(small_network(), FrozenConfig(), len(images), tmp_path, times)
    fit.observe(images, labels, torch.arange(len(images)))
    fit.finish()
    assert list(times) == ["PCA", "pooling", "Gram matrix", "SVM"]
    assert min(times.values()) > 0


def _live_bytes() -> int:
    """Count the bytes of all tensors in memory."""
    tensors = [o for o in gc.get_objects() if type(o) is Tensor]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.usefixtures("on_disk")
@pytest.mark.parametrize("pca_dim", [6, None])
def test_observing_keeps_no_image_in_memory(tmp_path: Path, pca_dim: int | None) -> None:
    images, labels = small_images()
    network = small_network(cross(pca_dim=pca_dim))
    fit = FrozenFit(network, FrozenConfig(), len(images), tmp_path, PhaseTimes())
    live = []
    for positions in torch.arange(len(images)).chunk(3):
        fit.observe(images[positions], labels[positions], positions)
        live.append(_live_bytes())
    fit.close(keep=False)
    one_map = 4 * 128 * 14 * 14
    assert live[2] - live[0] < one_map


@pytest.mark.usefixtures("on_disk")
@pytest.mark.parametrize("per_class", [12, 36])
def test_finishing_reads_the_disk_block_by_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per_class: int
) -> None:
    """The memory for blocks has the same bound for few and for many images."""
    alive: dict[str, int] = {}
    peak: dict[str, int] = {}

    def watch(store: RowStore, block: Tensor) -> Tensor:
        kind, size = store.path.name, block.nbytes
        alive[kind] = alive.get(kind, 0) + size
        peak[kind] = max(peak.get(kind, 0), alive[kind])
        weakref.finalize(block, lambda: alive.update({kind: alive[kind] - size}))
        return block

    read, read_columns = RowStore.read, RowStore.read_columns
    monkeypatch.setattr(RowStore, "read", lambda self, a, b: watch(self, read(self, a, b)))
    monkeypatch.setattr(RowStore, "read_columns", lambda self, a, b: watch(self, read_columns(self, a, b)))
    limit = 16 << 10
    monkeypatch.setattr(solvers, "gram_matrix", partial(gram_matrix, block_bytes=limit))
    monkeypatch.setattr(libsvm, "combine_rows", partial(combine_rows, block_bytes=limit))
    monkeypatch.setattr(fit_module, "score_rows", partial(score_rows, block_bytes=limit))
    data = small_images(per_class)
    run_fit(small_network(), tmp_path, data=data)
    assert 4 * 128 * 6 * len(data[0]) > 6 * limit  # otherwise one block would have contained all
    assert 0 < peak["features.bin"] <= limit
    assert 0 < peak["maps-0.bin"] <= 2 * 32 * 4 * (128 + 128) * 14 * 14  # 32 images, and 32 more that are being read


def test_rows_in_memory_and_on_disk_give_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare maps and features bit by bit."""
    written: list[int] = []
    held: set[bool] = set()
    write = RowStore.write

    def watch(store: RowStore, positions: Tensor, *given: Any) -> None:
        if "maps" in store.path.name:
            written.extend(positions.tolist())
        else:
            held.add(store.in_memory)
        write(store, positions, *given)

    monkeypatch.setattr(RowStore, "write", watch)
    states = []
    for images, first in (
        (0, 0),
        (10, 6),
        (21, 21),
    ):  # the number of the 21 that fits in memory, in batches of 6, 6, 6 and 3
        monkeypatch.setattr(fit_module, "memory_for_maps", partial(int, images * 2 * 4 * 128 * 14 * 14))
        written.clear()
        held.clear()
        fitted = small_network()
        run_fit(fitted, tmp_path / str(images), batches=torch.split(torch.arange(21), 6))
        assert written == list(range(first, 21))
        assert held == {images > 0}
        states.append(fitted.state_dict())
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]) and torch.equal(value, states[2][key]), key


@pytest.mark.usefixtures("on_disk")
def test_pooling_without_projection_needs_no_maps(tmp_path: Path) -> None:
    images, labels = small_images()
    network = small_network(cross(pca_dim=None))
    fit = FrozenFit(network, FrozenConfig(), len(images), tmp_path, PhaseTimes())
    fit.observe(images, labels, torch.arange(len(images)))
    assert [p.name for p in tmp_path.iterdir()] == ["features.bin"]
    fit.close(keep=False)
