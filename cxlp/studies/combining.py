"""``cxlp compare --combine``: combine systems by concatenating their stored representations.

No image passes through a network again.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from cxlp.data.datamodule import ImageDataModule
from cxlp.data.dataset import Sample
from cxlp.frozen.combination import Combination, Kernels
from cxlp.frozen.config import FrozenConfig
from cxlp.frozen.store import RowStore, open_rows, row_bytes
from cxlp.metrics.average_precision import mean_average_precision
from cxlp.metrics.intervals import Interval, precision_intervals, wilson
from cxlp.reports.formatting import as_csv
from cxlp.reports.outputs import Outputs
from cxlp.reports.predictions import Predictions
from cxlp.runs.cli import parse, parts_of
from cxlp.studies.choice import cross_validated
from cxlp.utils.errors import CxlpError
from cxlp.utils.files import write_whole
from cxlp.utils.fingerprint import digest
from cxlp.utils.progress import track

#: Maximum number of combinations in the table; ``combinations.csv`` has all of them.
SHOWN = 10


@dataclass(frozen=True)
class CombinedRow:
    """A row of the table for a combination of systems.

    Attributes:
        names: Names of the systems.
        choice: Cross-validated accuracy or mean average precision of the training images, in percent.
        size: Dimensions of the concatenated vector.
        row_bytes: Bytes of an image's stored features.
        c: The chosen cost C.
        seconds: Duration of the cross-validation.
        quality: Accuracy or mean average precision of the test images, in percent; ``None`` if not tested.
        interval: 95 % confidence interval of ``quality``, in percent.
        place: The folder of the predictions; ``None`` if not tested.
    """

    names: tuple[str, ...]
    choice: float
    size: int
    row_bytes: int
    c: float
    seconds: float
    quality: float | None = None
    interval: tuple[float, float] | None = None
    place: Path | None = None

    @property
    def name(self) -> str:
        """The name that the table shows."""
        return f"combination: {' & '.join(self.names)}"

    @property
    def cells(self) -> dict[str, Any]:
        """The cells of the table by column; those of the test only if the combination was tested."""
        tested = self.quality is not None and {"test": round(self.quality, 2)}
        ends = self.interval and {"95% interval": "{:.2f} to {:.2f}".format(*self.interval)}
        known = {"system": self.name, "cv %": round(self.choice, 2), "size": self.size}
        return {**known, "kB": round(self.row_bytes / 1000, 1), **(tested or {}), **(ends or {})}


@dataclass(frozen=True)
class _Stored:
    """A system's stored features, and the data set whose images they describe."""

    name: str
    choice: float | None
    files: dict[str, Any]
    store: Path
    data: ImageDataModule
    config: FrozenConfig

    @property
    def row_bytes(self) -> int:
        return row_bytes(self.files["dim"], self.files["kinds"]["train"])

    def rows(self, split: str) -> RowStore:
        size, dim, kind = len(self.data.splits[split]), self.files["dim"], self.files["kinds"][split]  # type: ignore[index]
        return open_rows(self.store / self.files[split], size, dim, kind, to_write=False)

    def samples(self) -> list[list[tuple[Path, Any, Any]]]:
        """Return path, box and label of the training and test images, in order, to compare two systems' images."""
        splits: list[Sequence[Sample]] = [self.data.splits[split].samples for split in ("train", "test")]
        return [[(s.path.absolute(), s.box, s.label) for s in samples] for samples in splits]


def combine(
    places: Mapping[str, Path], store: Path, most: int, folder: Path, metric: str, outputs: Outputs
) -> tuple[list[CombinedRow], str]:
    """Cross-validate all combinations of systems, then test the best one.

    Ties prefer fewer systems, then the shorter vector. The test images are scored once, by the chosen combination.

    Args:
        places: The folder of each system's results, by the system's name.
        store: The folder in which the runs have stored their features.
        most: Maximum number of systems in a combination, at least 2.
        folder: The comparison's folder, where ``combinations.csv`` and a folder with the predictions of the chosen
            combination are written.
        metric: ``accuracy`` or ``mAP``.
        outputs: Records secondary outputs that could not be written.

    Returns:
        The best combinations, the chosen one first, and a note about them.

    Raises:
        CxlpError: If fewer than two systems have features of the same images, or their kernels do not fit in memory.
    """
    found, skipped = _usable(places, store, metric)
    first = found[0]
    labels = torch.tensor([sample.label for sample in first.data.splits["train"].samples])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kernels = Kernels({s.name: s.rows("train") for s in found}, labels, first.data.classes, first.config, device)
    start = time.perf_counter()
    sets = [names for size in range(2, most + 1) for names in combinations(kernels.stores, size)]
    evaluated = [kernels.evaluate(names) for names in track(sets, "Cross-validating", len(sets), "combinations")]
    spent = time.perf_counter() - start
    of = {s.name: s for s in found}

    def row(one: Combination) -> CombinedRow:
        size = sum(of[name].files["dim"] for name in one.names)
        held = sum(of[name].row_bytes for name in one.names)
        return CombinedRow(one.names, 100 * one.quality, size, held, one.c, one.seconds)

    both = sorted(((row(one), one) for one in evaluated), key=lambda r: (-r[1].quality, len(r[0].names), r[0].size))
    rows, chosen = [made for made, _ in both], both[0][1]
    heads = ["systems", f"cv {metric} %", "C", "size", "seconds"]
    values = [[" & ".join(r.names), round(r.choice, 2), f"{r.c:g}", r.size, round(r.seconds, 2)] for r in rows]
    write_whole(folder / "combinations.csv", as_csv(heads, values))
    scores = kernels.scores(chosen, {name: of[name].rows("test") for name in chosen.names})
    rows[0] = _test(rows[0], scores, first.data, folder, metric, outputs)
    single = max(found, key=lambda s: s.choice or 0.0)
    alone = ""
    if single.choice is not None and single.choice >= chosen.quality:
        alone = f"No combination is better than {single.name} alone, by cv %."
    note = (
        f"combination: {len(rows)} combinations of {len(found)} systems were cross-validated on the sums of their "
        f"Gram matrices, each scaled to a mean diagonal of 1. {len(found)} Gram matrices took {kernels.seconds:.1f} s, "
        f"the cross-validations {spent:.1f} s. {min(SHOWN, len(rows))} combinations are shown; combinations.csv has "
        "all. Only the best one by cv % was tested. Its cv % is optimistic, because it is the best of many; its test "
        f"result is not. {alone}"
    )
    return rows[:SHOWN], " ".join([note, *skipped])


def _usable(places: Mapping[str, Path], store: Path, metric: str) -> tuple[list[_Stored], list[str]]:
    """Return the systems that can be combined, and a sentence about each other one.

    Raises:
        CxlpError: If there are fewer than two such systems, or their images differ, or their features were deleted.
    """
    found: list[_Stored] = []
    skipped: list[str] = []
    for name, place in places.items():
        known = json.loads((place / "metrics.json").read_text())
        files = known.get("features", {})
        if known.get("heads learnt from labels"):
            skipped.append(f"{name} is left out: its heads were fitted to the labels, so its cv % would be too high.")
        elif "test" not in files:
            skipped.append(f"{name} is left out: its frozen fit was not tested, or it has no stored features.")
        elif any(one.files["train"] == files["train"] for one in found):
            skipped.append(f"{name} is left out: it has the same features as another system.")
        elif lacking := [split for split in ("train", "test") if not (store / files[split]).is_file()]:
            raise CxlpError(
                f"the {lacking[0]} features of {name} are no longer in {store}: delete {place} and repeat the command "
                "to compute them again"
            )
        else:
            config = parse(["--config", str(place / "config.yaml")])
            pl.seed_everything(config["seed_everything"], workers=True)  # the held-out images may be drawn at random
            parts = parts_of(config)
            data: ImageDataModule = parts["data"]
            data.prepare_data()
            data.setup()
            choice = cross_validated(known, metric)
            found.append(_Stored(name, choice, files, store, data, parts["model"].frozen))
    if len(found) < 2:
        raise CxlpError(" ".join(["fewer than two systems can be combined.", *skipped]))
    for other in found[1:]:
        if other.data.classes != found[0].data.classes or other.samples() != found[0].samples():
            raise CxlpError(f"{found[0].name} and {other.name} cannot be combined: their images or labels differ")
    return found, skipped


def _test(
    row: CombinedRow, scores: Tensor, data: ImageDataModule, folder: Path, metric: str, outputs: Outputs
) -> CombinedRow:
    """Test a combination, and write its predictions and metrics."""
    split = data.splits["test"]
    labels = torch.tensor([sample.label for sample in split.samples])
    interval: Interval | None
    if labels.ndim == 1:
        right = int((scores.argmax(dim=1) == labels).sum())
        value, interval = right / len(labels), wilson(right, len(labels))
    else:
        value = float(mean_average_precision(scores, labels, "uninterpolated"))
        interval = precision_intervals(scores, labels, {metric: "uninterpolated"}).get(metric)
    place = folder / f"combination-{digest(*row.names, size=4)}"
    place.mkdir(exist_ok=True)
    Predictions(split, data.root, scores, torch.arange(len(labels)), "all").write(place, outputs)
    summary = {
        "metrics": {f"test/{metric}": value, f"frozen/cv_{metric}": row.choice / 100, "frozen/C": row.c},
        "intervals": {f"test/{metric}": interval._asdict()} if interval else {},
        "images": {name: len(images) for name, images in data.splits.items()},
        "combination": row.names,
    }
    write_whole(place / "metrics.json", json.dumps(summary, indent=2) + "\n")
    ends = None if interval is None else (100 * interval.low, 100 * interval.high)
    return replace(row, quality=100 * value, interval=ends, place=place)
