"""The metrics over batches, and with two processes."""

import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, recall_score
from torch import Tensor
from torch import distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection

from cxlp.metrics.average_precision import Kind, average_precision, precision_curves
from cxlp.metrics.classification import (
    MeanClassAccuracy,
    confusion_matrix,
    multi_label_metrics,
    per_class_average_precision,
    single_label_metrics,
)

KINDS: list[Kind] = ["11point", "allpoint", "uninterpolated"]
Array = NDArray[Any]

# --- the metric objects ------------------------------------------------------------------------------

ROWS, CLASSES = 61, 5


def rows() -> tuple[Tensor, Tensor, Tensor]:
    """Return margins with ties, labels in {-1, 0, 1} and class indices; the last class is never present."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(-1, 2, (ROWS, CLASSES), generator=generator)
    labels[:, -1] = labels[:, -1].clamp(max=0)
    scores = (4 * (labels + 2 * torch.randn(ROWS, CLASSES, generator=generator))).round()
    return scores, labels, torch.randint(0, CLASSES - 1, (ROWS,), generator=generator)


def all_metrics() -> dict[str, tuple[MetricCollection, bool]]:
    """Return collections by name, and whether they take multi-label targets."""
    return {
        "mean": (multi_label_metrics(CLASSES, "test/"), True),
        "per class": (per_class_average_precision(CLASSES), True),
        "single": (single_label_metrics(CLASSES, "test/"), False),
        "confusion": (MetricCollection({"counts": confusion_matrix(CLASSES)}), False),
    }


def measured(batches: list[Tensor]) -> dict[str, Tensor]:
    """Compute all metrics of the rows of this process in batches, none of which is empty."""
    scores, multi, single = rows()
    found: dict[str, Tensor] = {}
    for metrics, is_multi in all_metrics().values():
        for batch in batches:
            metrics.update(scores[batch], (multi if is_multi else single)[batch])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The ``compute`` method of metric")  # compute before update is intended
            found |= metrics.compute()
    return found


def assert_same_values(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Compare bitwise, with NaN equal to NaN."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=0, equal_nan=True, msg=name)


def test_names_and_values_of_the_collections() -> None:
    found = measured([torch.arange(ROWS)])
    scores, labels, _ = (x.numpy() for x in rows())
    for suffix, kind in {"_11point": "11point", "_allpoint": "allpoint", "": "uninterpolated"}.items():
        expected = average_precision(scores, labels, kind).tolist()  # type: ignore[arg-type]
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
        # scikit-learn appends a point that belongs to no image: precision 1 at recall 0
        expected = [precision[:-1][recall[:-1] >= t / 100 - 1e-12].max() for t in range(101)]
        assert curves[k] == pytest.approx(expected, abs=1e-12)
    assert curves[:, ::10].mean(axis=1) == pytest.approx(average_precision(scores, labels, "11point"), nan_ok=True)


def test_batches_have_the_result_of_all_rows_at_once() -> None:
    assert_same_values(measured([torch.arange(ROWS)]), measured(list(torch.arange(ROWS).chunk(9))))


def test_reset_clears_the_state() -> None:
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
    for x in (scores, scores.to(dtype).requires_grad_()):  # small integers, which are exact in each type
        metrics = multi_label_metrics(CLASSES, "")
        metrics.update(x, labels.to(torch.float32))
        found.append(metrics.compute())
    assert_same_values(*found)


class Logging(pl.LightningModule):
    """A module that logs metrics like the package's tasks."""

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


@settings(max_examples=100, deadline=None)
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


# --- two processes ----------------------------------------------------------------------------------

TIMEOUT = 120
SHARES = {
    "dealt out": (torch.arange(0, ROWS, 2), torch.arange(1, ROWS, 2)),
    "uneven": (torch.arange(50, ROWS), torch.arange(50)),
    "one idle": (torch.arange(0), torch.arange(ROWS)),
    "other idle": (torch.arange(ROWS), torch.arange(0)),
    "both idle": (torch.arange(0), torch.arange(0)),
}


def work(index: int, folder: Path) -> None:
    """The work of each of the two processes: a process without rows does not call update."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=index, world_size=2)
    found = {
        name: measured([batch for batch in shares[index].chunk(7) if len(batch)]) for name, shares in SHARES.items()
    }
    torch.save(found, folder / f"rank{index}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    """The results of the two processes."""
    folder = tmp_path_factory.mktemp("two_processes")
    context = spawn(work, (folder,), nprocs=2, join=False)  # type: ignore[no-untyped-call]
    try:
        deadline = time.monotonic() + TIMEOUT
        while not context.join(timeout=5):  # raises an error if a process failed
            assert time.monotonic() < deadline, f"two processes did not finish within {TIMEOUT} s"
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
    return [torch.load(folder / f"rank{i}.pt") for i in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARES)
def test_two_processes_agree_with_one(ranks: list[dict[str, dict[str, Tensor]]], name: str) -> None:
    alone = measured([] if name == "both idle" else [torch.arange(ROWS)])
    for found in ranks:
        assert_same_values(found[name], alone)
