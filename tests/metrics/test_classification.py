"""The metrics against literal references, over batches, and on two processes against one."""

import time
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, recall_score
from torch import Tensor
from torch import distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection

from cxlp.metrics.average_precision import Kind, average_precision, precision_curves
from cxlp.metrics.classification import (
    AveragePrecision,
    MeanAveragePrecision,
    MeanClassAccuracy,
    confusion_matrix,
    multi_label_metrics,
    per_class_average_precision,
    single_label_metrics,
)
from cxlp.utils.errors import CxlpError

KINDS: list[Kind] = ["11point", "allpoint", "uninterpolated"]
Array = NDArray[Any]

# --- references, written after the definitions ------------------------------------------------------


def precision_and_recall(positive: list[bool]) -> tuple[list[Fraction], list[Fraction]]:
    """Of a ranked list, after each of its rows, as the VOC devkit computes them."""
    precision, recall = [], []
    found = 0
    for seen, hit in enumerate(positive, start=1):
        found += hit
        precision.append(Fraction(found, seen))
        recall.append(Fraction(found, sum(positive)))
    return precision, recall


def eleven_points(positive: list[bool]) -> float:
    """VOC 2007: the mean over eleven recall levels of the best precision at that recall or a higher one."""
    precision, recall = precision_and_recall(positive)
    total = Fraction(0)
    for tenth in range(11):
        best = Fraction(0)
        for p, r in zip(precision, recall, strict=True):
            if r >= Fraction(tenth, 10):
                best = max(best, p)
        total += best / 11
    return float(total)


def area(positive: list[bool]) -> float:
    """VOC 2010 and later: the area under the precision once it is made to fall monotonically."""
    precision, recall = precision_and_recall(positive)
    precision, recall = [Fraction(0), *precision, Fraction(0)], [Fraction(0), *recall, Fraction(1)]
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    total = Fraction(0)
    for i in range(1, len(recall)):
        if recall[i] != recall[i - 1]:
            total += (recall[i] - recall[i - 1]) * precision[i]
    return float(total)


DEVKIT = {"11point": eleven_points, "allpoint": area}


def absent_first(scores: Array, labels: Array) -> list[bool]:
    """Rank one class; ignored rows dropped, the absent before the present among equal scores."""
    rows = sorted((-float(s), int(y)) for s, y in zip(scores, labels, strict=True) if y != 0)
    return [y > 0 for _, y in rows]


def listed_first(scores: Array, labels: Array) -> list[bool]:
    """Rank one class as the devkit does: a stable sort."""
    rows = [(-float(s), int(y)) for s, y in zip(scores, labels, strict=True) if y != 0]
    return [y > 0 for _, y in sorted(rows, key=lambda row: row[0])]


def reference(scores: Array, labels: Array, kind: Kind) -> float:
    """One class, by the devkit's loops or scikit-learn."""
    if not (labels > 0).any():
        return float("nan")
    if kind == "uninterpolated":
        counts = labels != 0
        return float(average_precision_score(labels[counts] > 0, scores[counts].astype(np.float64)))
    return DEVKIT[kind](absent_first(scores, labels))


def assert_is_the_reference(scores: Array, labels: Array) -> None:
    """All three kinds, all classes."""
    for kind in KINDS:
        expected = [reference(s, y, kind) for s, y in zip(scores.T, labels.T, strict=True)]
        np.testing.assert_allclose(average_precision(scores, labels, kind), expected, rtol=0, atol=1e-12, err_msg=kind)


# --- average precision: thousands of random cases ---------------------------------------------------

LABELS = st.sampled_from((-1, 0, 1))
TIED = st.sampled_from((-3.0, -0.0, 0.0, 0.5, 40.0))
ANY = st.floats(allow_nan=False, allow_infinity=False, width=32)


def columns(rows: list[tuple[float, int]]) -> tuple[Array, Array]:
    """Drawn rows of one class as ``(n, 1)`` scores and labels."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 2)
    return table[:, :1], table[:, 1:].astype(np.int8)


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.tuples(TIED | ANY, LABELS), max_size=12))
def test_average_precision_of_few_rows(rows: list[tuple[float, int]]) -> None:
    assert_is_the_reference(*columns(rows))


@settings(max_examples=1500, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(0, 120),
    classes=st.integers(1, 4),
    levels=st.sampled_from((1, 2, 7, 1000)),
    present=st.floats(0, 1),
    ignored=st.sampled_from((0.0, 0.1, 0.9, 1.0)),
)
def test_average_precision_of_many_rows(
    seed: int, n: int, classes: int, levels: int, present: float, ignored: float
) -> None:
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random((n, classes)) < present, 1, -1)
    labels[rng.random((n, classes)) < ignored] = 0
    scores = (rng.integers(0, levels, (n, classes)) - levels / 2) * 7.3 + 0.3 * labels * (levels > 7)
    assert_is_the_reference(scores, labels)


@settings(max_examples=700, deadline=None)
@given(st.lists(st.tuples(TIED, LABELS), min_size=1, max_size=12))
def test_ties_cost_at_most_what_the_devkits_worst_order_costs(rows: list[tuple[float, int]]) -> None:
    scores, labels = columns(rows)
    if not (labels > 0).any():
        return
    for kind, devkit in DEVKIT.items():
        ours = average_precision(scores, labels, kind)[0]  # type: ignore[arg-type]
        official = devkit(listed_first(scores[:, 0], labels[:, 0]))
        assert ours <= official + 1e-12
        if not set(scores[labels > 0]) & set(scores[labels < 0]):
            assert ours == pytest.approx(official, abs=1e-12)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(TIED, LABELS), max_size=12), st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_no_bit(rows: list[tuple[float, int]], random: Any) -> None:
    shuffled = random.sample(rows, len(rows))
    for kind in KINDS:
        assert np.array_equal(
            average_precision(*columns(rows), kind), average_precision(*columns(shuffled), kind), equal_nan=True
        )


# --- average precision: cases worked by hand --------------------------------------------------------


def one_class(positive: list[int]) -> tuple[Array, Array]:
    """Ranked labels under falling scores."""
    return -np.arange(len(positive), dtype=np.float32)[:, None], np.array(positive)[:, None]


@pytest.mark.parametrize(
    ("kind", "expected"), [("11point", (4 + 7 * 0.6) / 11), ("allpoint", 2.2 / 3), ("uninterpolated", 2.1 / 3)]
)
def test_the_kinds_differ_as_defined(kind: Kind, expected: float) -> None:
    # Precision 1, 1/2, 1/3, 2/4, 3/5 at recall 1/3, 1/3, 1/3, 2/3, 1.
    assert average_precision(*one_class([1, -1, -1, 1, 1]), kind)[0] == pytest.approx(expected)


@pytest.mark.parametrize("tenths", range(1, 10))
def test_a_recall_of_exactly_so_many_tenths_is_reached(tenths: int) -> None:
    scores, labels = one_class([1] * tenths + [-1] * 30 + [1] * (10 - tenths))
    expected = (tenths + 1 + (10 - tenths) * 10 / 40) / 11
    assert average_precision(scores, labels, "11point")[0] == pytest.approx(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_by_scores_of_any_range(kind: Kind) -> None:
    labels = np.array([[1], [-1], [1], [-1]])
    scores = np.array([[90.0], [80.0], [70.0], [60.0]])  # a sigmoid in float32 would make them all 1
    expected = average_precision(scores / 1000, labels, kind)
    assert expected[0] > 0.8
    assert average_precision(scores, labels, kind) == expected
    assert average_precision(scores - 1000, labels, kind) == expected
    metric = MeanAveragePrecision(1, kind)
    metric.update(torch.from_numpy(scores), torch.from_numpy(labels))
    assert metric.compute() == pytest.approx(expected[0])


@pytest.mark.parametrize("kind", KINDS)
def test_infinite_scores_and_unsigned_integers_have_ranks_too(kind: Kind) -> None:
    labels = np.array([[1], [-1], [1], [-1]])
    expected = average_precision(np.array([[4.0], [3.0], [2.0], [1.0]]), labels, kind)
    assert average_precision(np.array([[np.inf], [3.0], [2.0], [-np.inf]]), labels, kind) == expected
    assert average_precision(np.array([[9], [3], [2], [0]], np.uint8), labels, kind) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_equal_scores_get_the_share_of_positives(kind: Kind) -> None:
    labels = np.array([[1], [-1], [-1], [1], [-1], [0]])
    assert average_precision(np.full((6, 1), -3.0), labels, kind)[0] == pytest.approx(2 / 5)


@pytest.mark.parametrize("kind", KINDS)
def test_classes_without_positives_are_nan_and_not_in_the_mean(kind: Kind) -> None:
    # Only absent; all ignored; one present among ignored, whose NaN score does not count; perfect.
    labels = torch.tensor([[-1, 0, 0, 1], [-1, 0, 1, -1], [-1, 0, -1, -1]])
    scores = torch.tensor([[3.0, 3, float("nan"), 3], [2, 2, 1, 2], [1, 1, 2, 1]])
    assert np.array_equal(average_precision(scores, labels, kind), [np.nan, np.nan, 0.5, 1], equal_nan=True)
    mean = MeanAveragePrecision(4, kind)
    mean.update(scores, labels)
    assert mean.compute() == 0.75


@pytest.mark.parametrize("labels", [torch.zeros(3, 2), -torch.ones(3, 2), torch.zeros(0, 2)])
def test_no_class_left_is_nan_without_an_exception(labels: Tensor) -> None:
    metrics, classes = multi_label_metrics(2, ""), per_class_average_precision(2)
    for collection in (metrics, classes):
        collection.update(torch.rand_like(labels), labels)
    assert all(value.shape == () and value.isnan() for value in metrics.compute().values())
    found = classes.compute()
    assert found.pop("curves").shape == (2, 101)
    assert all(value.shape == (2,) and value.isnan().all() for value in found.values())


def test_wrong_input_is_refused() -> None:
    scores, labels = np.zeros((3, 2)), np.ones((3, 2))
    with pytest.raises(CxlpError, match=r"one shape \(n, K\), not \(3, 2\) and \(3, 1\)"):
        average_precision(scores, labels[:, :1])
    with pytest.raises(CxlpError, match=r"not \(3,\) and \(3,\)"):
        average_precision(scores[:, 0], labels[:, 0])
    with pytest.raises(CxlpError, match=r"or 0 \(ignored\), not 2"):
        average_precision(scores, labels * 2)
    with pytest.raises(CxlpError, match="some scores are NaN"):
        average_precision(scores * np.nan, labels)
    with pytest.raises(CxlpError, match="'voc'; valid: 11point, allpoint, uninterpolated"):
        average_precision(scores, labels, "voc")  # type: ignore[arg-type]
    with pytest.raises(CxlpError, match=r"of shape \(images, 3\), not \(3, 2\) and \(3, 2\)"):
        AveragePrecision(3, "allpoint").update(torch.zeros(3, 2), torch.zeros(3, 2))


# --- the objects ------------------------------------------------------------------------------------

ROWS, CLASSES = 61, 5


def rows() -> tuple[Tensor, Tensor, Tensor]:
    """Margins with ties, labels in {-1, 0, 1} and class indices; the last class is never present."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(-1, 2, (ROWS, CLASSES), generator=generator)
    labels[:, -1] = labels[:, -1].clamp(max=0)
    scores = (4 * (labels + 2 * torch.randn(ROWS, CLASSES, generator=generator))).round()
    return scores, labels, torch.randint(0, CLASSES - 1, (ROWS,), generator=generator)


def all_metrics() -> dict[str, tuple[MetricCollection, bool]]:
    """Collections by name, and whether they take multi-label targets."""
    return {
        "mean": (multi_label_metrics(CLASSES, "test/"), True),
        "per class": (per_class_average_precision(CLASSES), True),
        "single": (single_label_metrics(CLASSES, "test/"), False),
        "confusion": (MetricCollection({"counts": confusion_matrix(CLASSES)}), False),
    }


def measured(batches: list[Tensor]) -> dict[str, Tensor]:
    """All metrics of the rows that this process sees, batch by batch, none for an empty one."""
    scores, multi, single = rows()
    found: dict[str, Tensor] = {}
    for metrics, is_multi in all_metrics().values():
        for batch in batches:
            metrics.update(scores[batch], (multi if is_multi else single)[batch])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The ``compute`` method of metric")  # before update: that is the case
            found |= metrics.compute()
    return found


def assert_same_values(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """To the last bit, NaN equal to NaN."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=0, equal_nan=True, msg=name)


def test_names_and_values_of_the_collections() -> None:
    found = measured([torch.arange(ROWS)])
    scores, labels, _ = (x.numpy() for x in rows())
    for suffix, kind in {"_11point": "11point", "_allpoint": "allpoint", "": "uninterpolated"}.items():
        expected = [reference(scores[:, k], labels[:, k], kind) for k in range(CLASSES)]  # type: ignore[arg-type]
        assert found[f"AP{suffix}"].tolist() == pytest.approx(expected, abs=1e-7, nan_ok=True)
        assert found[f"AP{suffix}"].isnan().tolist() == [False] * (CLASSES - 1) + [True]
        assert found[f"test/mAP{suffix}"].item() == pytest.approx(np.mean(expected[:-1]), abs=1e-7)
    assert len({found[f"test/mAP{suffix}"].item() for suffix in ("", "_11point", "_allpoint")}) == 3


def test_curves_are_the_best_precision_at_each_recall() -> None:
    scores, labels, _ = (x.numpy() for x in rows())
    curves = precision_curves(scores, labels)
    assert curves.shape == (CLASSES, 101)
    assert np.isnan(curves[-1]).all()  # without positives
    for k in range(CLASSES - 1):
        counted = labels[:, k] != 0
        precision, recall, _ = precision_recall_curve(labels[counted, k] > 0, scores[counted, k])
        # scikit-learn appends a point of its own, precision 1 at recall 0, that no image stands for
        expected = [precision[:-1][recall[:-1] >= t / 100 - 1e-12].max() for t in range(101)]
        assert curves[k] == pytest.approx(expected, abs=1e-12)
    assert curves[:, ::10].mean(axis=1) == pytest.approx(average_precision(scores, labels, "11point"), nan_ok=True)


def test_batches_give_what_all_rows_at_once_give() -> None:
    assert_same_values(measured([torch.arange(ROWS)]), measured(list(torch.arange(ROWS).chunk(9))))


def test_reset_forgets() -> None:
    scores, multi, single = rows()
    for metrics, is_multi in all_metrics().values():
        target = multi if is_multi else single
        metrics.update(scores[:20], target[:20])
        first = metrics.compute()
        metrics.reset()
        metrics.update(scores[20:], target[20:])
        second = metrics.compute()
        metrics.reset()
        metrics.update(scores[:20], target[:20])
        assert_same_values(metrics.compute(), first)
        assert any(not torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scores_of_any_precision(dtype: torch.dtype) -> None:
    scores, labels, _ = rows()
    found = []
    for x in (scores, scores.to(dtype).requires_grad_()):  # small integers: exact in each type
        metrics = multi_label_metrics(CLASSES, "")
        metrics.update(x, labels.to(torch.float32))
        found.append(metrics.compute())
    assert_same_values(*found)


class Logging(pl.LightningModule):
    """Logs metrics as the package's tasks do."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics = multi_label_metrics(CLASSES, "val/")

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        scores, labels, _ = batch
        self.metrics.update(scores, labels)
        self.log_dict(dict(self.metrics.items()), on_step=False, on_epoch=True, batch_size=len(scores))


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_lightning_logs_and_resets_them(tmp_path: Path) -> None:
    module, loader = Logging(), DataLoader(TensorDataset(*rows()), batch_size=8)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    expected = {k.replace("test/", "val/"): float(v) for k, v in measured([torch.arange(ROWS)]).items() if "mAP" in k}
    for _ in range(2):
        assert trainer.validate(module, loader, verbose=False) == [expected]


# --- accuracy ---------------------------------------------------------------------------------------


def test_a_class_without_images_is_not_in_the_mean_even_if_predicted() -> None:
    metric = MeanClassAccuracy(2)
    metric.update(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    assert metric.compute() == 0.5


def test_accuracy_without_any_image_is_nan() -> None:
    metric = MeanClassAccuracy(2)
    metric.update(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))
    assert metric.compute().isnan()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=25))
def test_accuracies_and_confusion_matrix_of_random_predictions(pairs: list[tuple[int, int]]) -> None:
    true, predicted = torch.tensor(pairs).T
    scores = 7 * torch.nn.functional.one_hot(predicted, 4) - 20.0
    counts = np.zeros((4, 4), dtype=int)
    for t, p in pairs:
        counts[t, p] += 1
    matrix = confusion_matrix(4)
    matrix.update(scores, true)
    assert matrix.compute().tolist() == counts.tolist()
    metrics = single_label_metrics(4, "test/")
    metrics.update(scores, true)
    found = metrics.compute()
    assert found.keys() == {"test/accuracy", "test/mean_class_accuracy"}
    assert float(found["test/accuracy"]) == pytest.approx(np.trace(counts) / len(pairs))
    present = sorted(set(true.tolist()))
    expected = recall_score(true, predicted, labels=present, average="macro")
    assert float(found["test/mean_class_accuracy"]) == pytest.approx(expected)


# --- two processes against one ----------------------------------------------------------------------

TIMEOUT = 120
SHARES = {
    "dealt out": (torch.arange(0, ROWS, 2), torch.arange(1, ROWS, 2)),
    "uneven": (torch.arange(50, ROWS), torch.arange(50)),
    "one idle": (torch.arange(0), torch.arange(ROWS)),
    "other idle": (torch.arange(ROWS), torch.arange(0)),
    "both idle": (torch.arange(0), torch.arange(0)),
}


def work(index: int, folder: Path) -> None:
    """What each of the two processes does: an idle one does not call update at all."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=index, world_size=2)
    found = {
        name: measured([batch for batch in shares[index].chunk(7) if len(batch)]) for name, shares in SHARES.items()
    }
    torch.save(found, folder / f"rank{index}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    """What each of the two processes found."""
    folder = tmp_path_factory.mktemp("two_processes")
    context = spawn(work, (folder,), nprocs=2, join=False)  # type: ignore[no-untyped-call]
    try:
        deadline = time.monotonic() + TIMEOUT
        while not context.join(timeout=5):  # raises where a process failed
            assert time.monotonic() < deadline, f"two processes did not finish within {TIMEOUT} s"
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
    return [torch.load(folder / f"rank{i}.pt") for i in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARES)
def test_two_processes_find_what_one_does(ranks: list[dict[str, dict[str, Tensor]]], name: str) -> None:
    alone = measured([] if name == "both idle" else [torch.arange(ROWS)])
    for found in ranks:
        assert_same_values(found[name], alone)
