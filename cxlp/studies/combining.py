"""``cxlp compare --combine``: systems whose representations are concatenated, without a pass over the images."""

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
from cxlp.frozen.fit import FrozenConfig
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

#: Most combinations in the table; the file has all of them.
SHOWN = 10


@dataclass(frozen=True)
class CombinedRow:
    """A combination.

    Attributes:
        names: Of its systems.
        choice: Accuracy or mean average precision of the training images by cross-validation, in percent.
        size: Of the concatenated vector.
        row_bytes: Bytes of an image's stored features.
        c: The cost C that was chosen.
        seconds: That its cross-validation took.
        quality: The same of the test images; ``None``: it was not tested.
        interval: Of 95 % confidence, in percent, of ``quality``.
        place: The folder of its answers, where it was tested.
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
        """For people."""
        return f"combination: {' & '.join(self.names)}"

    @property
    def cells(self) -> dict[str, Any]:
        """For a table: what is tested only where it was."""
        tested = self.quality is not None and {"test": round(self.quality, 2)}
        ends = self.interval and {"95% interval": "{:.2f} to {:.2f}".format(*self.interval)}
        known = {"system": self.name, "cv %": round(self.choice, 2), "size": self.size}
        return {**known, "kB": round(self.row_bytes / 1000, 1), **(tested or {}), **(ends or {})}


@dataclass(frozen=True)
class _Stored:
    """A system's features, and the images that they are of."""

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
        """The images in their order; what a sample may tell beside them changes nothing."""
        splits: list[Sequence[Sample]] = [self.data.splits[split].samples for split in ("train", "test")]
        return [[(s.path.absolute(), s.box, s.label) for s in samples] for samples in splits]


def combine(
    places: Mapping[str, Path], store: Path, most: int, folder: Path, metric: str, outputs: Outputs
) -> tuple[list[CombinedRow], str]:
    """Cross-validate all combinations of systems, then test the best one.

    Ties prefer fewer systems, then the shorter vector. The test images are scored once, by the chosen combination.

    Args:
        places: By system the folder of its run's results.
        store: Where the runs have kept features.
        most: How many systems a combination has at most; at least two.
        folder: The comparison's: gets ``combinations.csv``, and a folder with the answers of the chosen one.
        metric: ``accuracy`` or ``mAP``.
        outputs: Notes what could not be made.

    Returns:
        The best combinations, the chosen one first, and what to tell of them.

    Raises:
        CxlpError: If there are no two systems with features of the same images, or too little memory for their kernels.
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
        f"combination: {len(rows)} combinations of {len(found)} systems, cross-validated on the sums of their kernels, "
        f"each of unit mean diagonal: {kernels.seconds:.1f} s for {len(found)} Gram matrices, {spent:.1f} s for the "
        f"cross-validations; {min(SHOWN, len(rows))} are shown, all are in combinations.csv. Only the best by cv % was "
        f"tested; that it is the best of so many flatters its cv %, and not its test. {alone}"
    )
    return rows[:SHOWN], " ".join([note, *skipped])


def _usable(places: Mapping[str, Path], store: Path, metric: str) -> tuple[list[_Stored], list[str]]:
    """Systems with features of the same images, and what is told of the others."""
    found: list[_Stored] = []
    skipped: list[str] = []
    for name, place in places.items():
        known = json.loads((place / "metrics.json").read_text())
        files = known.get("features", {})
        if known.get("heads learnt from labels"):
            skipped.append(f"{name} is left out: its heads have learnt from the labels, so its cv % would be too high.")
        elif "test" not in files:
            skipped.append(f"{name} is left out: what was tested is not its frozen fit, or it keeps no features.")
        elif any(one.files["train"] == files["train"] for one in found):
            skipped.append(f"{name} is left out: its features are those of another system.")
        elif lacking := [split for split in ("train", "test") if not (store / files[split]).is_file()]:
            raise CxlpError(
                f"the {lacking[0]} features of {name} are not in {store} any more: delete {place}, and the same "
                "command makes them anew"
            )
        else:
            config = parse(["--config", str(place / "config.yaml")])
            pl.seed_everything(config["seed_everything"], workers=True)  # by which what is held out may be drawn
            parts = parts_of(config)
            data: ImageDataModule = parts["data"]
            data.prepare_data()
            data.setup()
            choice = cross_validated(known, metric)
            found.append(_Stored(name, choice, files, store, data, parts["model"].frozen))
    if len(found) < 2:
        raise CxlpError(" ".join(["there are no two systems to combine.", *skipped]))
    for other in found[1:]:
        if other.data.classes != found[0].data.classes or other.samples() != found[0].samples():
            raise CxlpError(f"{found[0].name} and {other.name} have other training or test images")
    return found, skipped


def _test(
    row: CombinedRow, scores: Tensor, data: ImageDataModule, folder: Path, metric: str, outputs: Outputs
) -> CombinedRow:
    """Test a combination, and write what it answers."""
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
