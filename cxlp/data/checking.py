"""A whole data set under the magnifier: what would stop a run, and what its loaders do about the rest."""

import signal
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter

from tqdm import tqdm

from cxlp.data.datamodule import ImageDataModule
from cxlp.data.dataset import Sample, Split, list_defects
from cxlp.data.decode import Box
from cxlp.data.inspection import Finding, Inspection, Kind, inspect_image
from cxlp.data.lists import TotalsError
from cxlp.utils.errors import CxlpError

#: Files that a process gets at once: few enough for an interrupt to be quick, many enough to keep it busy.
_CHUNK = 4


@dataclass(frozen=True)
class Counts:
    """What a split holds.

    Attributes:
        images: Samples.
        classes: Those that some sample shows.
        positives: Labels 1, over all classes; each sample has one where each image shows one class.
        ignored: Labels 0.
    """

    images: int
    classes: int
    positives: int
    ignored: int


@dataclass(frozen=True)
class Report:
    """What :func:`check` found.

    Attributes:
        counts: By split; with ``train + val`` where there are official validation images.
        findings: By kind, in the order of the kinds; only kinds of which there are some.
        files: How many different ones the splits use.
        decoded: How many of them could be decoded.
        seconds: How long that took.
    """

    counts: dict[str, Counts]
    findings: dict[Kind, list[Finding]]
    files: int
    decoded: int
    seconds: float

    @property
    def defects(self) -> int:
        """The number of findings that stop a run."""
        return sum(len(found) for kind, found in self.findings.items() if kind.stops)


def check(data: ImageDataModule, workers: int) -> Report:
    """Decode every image that the splits use, and hold the lists against each other; downloads nothing.

    Boxes are looked at also where a run would not use them. Nothing that is found ends it early.

    Args:
        data: The data set.
        workers: Processes; 1: this one alone.

    Raises:
        CxlpError: If the data set is not there, its lists cannot be read, or a process dies.
    """
    findings, (classes, samples) = _read(data)
    if not data.root.is_dir():
        raise CxlpError(f"{data.name}: there is no {data.root.absolute()}")
    fitted = [*samples["train"], *samples.get("val", [])]
    findings += [Finding(Kind.LISTS, d) for d in list_defects(classes, {"train": fitted, "test": samples["test"]})]
    findings += _oddities(classes, fitted, samples["test"])

    counts = {str(split): _count(part) for split, part in samples.items()}
    if "val" in samples:
        counts["train + val"] = _count(fitted)

    boxes: dict[Path, list[Box]] = {}
    for sample in (s for part in samples.values() for s in part):
        boxes.setdefault(sample.path, []).extend([] if sample.box is None else [sample.box])
    digests: dict[Path, bytes] = {}
    started = perf_counter()
    for path, inspection in _inspections(boxes, workers):
        findings += inspection.findings
        if inspection.digest:
            digests[path] = inspection.digest
    seconds = perf_counter() - started
    findings += _shared(samples, digests)
    by_kind = {kind: [finding for finding in findings if finding.kind is kind] for kind in Kind}
    return Report(counts, {kind: found for kind, found in by_kind.items() if found}, len(boxes), len(digests), seconds)


def _read(data: ImageDataModule) -> tuple[list[Finding], tuple[tuple[str, ...], dict[Split, list[Sample]]]]:
    """Read the lists, with boxes where there are some; official totals that are not met are a finding."""
    try:
        if getattr(data, "bbox", True):  # or there is no such option
            return [], data.read()
        boxed = copy(data)
        vars(boxed)["bbox"] = True
        try:
            return [], boxed.read()
        except TotalsError:
            raise
        except CxlpError as error:
            content = data.read()  # raises what does not depend on the boxes
            return [Finding(Kind.BOX_LIST, str(error))], content
    except TotalsError as error:
        return [Finding(Kind.LISTS, str(error))], error.content
    except OSError as error:
        raise CxlpError(f"{data.name}: cannot read {data.root}: {error}") from error


def _shown(samples: Sequence[Sample]) -> set[int]:
    """The classes that some sample shows."""
    labels = {s.label for s in samples}
    single = {label for label in labels if isinstance(label, int)}
    return single | {k for row in labels if not isinstance(row, int) for k, label in enumerate(row) if label == 1}


def _count(samples: Sequence[Sample]) -> Counts:
    labels = [s.label for s in samples]
    return Counts(
        images=len(samples),
        classes=len(_shown(samples)),
        positives=sum(1 if isinstance(label, int) else label.count(1) for label in labels),
        ignored=sum(0 if isinstance(label, int) else label.count(0) for label in labels),
    )


def _oddities(classes: Sequence[str], fitted: Sequence[Sample], test: Sequence[Sample]) -> Iterator[Finding]:
    """What lists say that is out of the ordinary, and stops nothing."""
    for split, part in (("train", fitted), ("test", test)):
        seen = set()
        for path, label, box in part:
            if (path, box) in seen:
                yield Finding(Kind.REPEATED, str(path), f"in {split}")
            seen.add((path, box))
            if not isinstance(label, int) and not any(label):
                yield Finding(Kind.UNSPECIFIED, str(path), f"in {split}")
        if any(box for _, _, box in part):
            yield from (Finding(Kind.NO_BOX, str(path), f"in {split}") for path, _, box in part if box is None)
    if test:
        shown = _shown(test)
        yield from (Finding(Kind.NO_TEST, name) for k, name in enumerate(classes) if k not in shown)


def _shared(samples: dict[Split, list[Sample]], digests: dict[Path, bytes]) -> Iterator[Finding]:
    """Files of later splits whose content is also in an earlier one; the very same file is a defect of the lists."""
    first: dict[bytes, dict[Split, Path]] = defaultdict(dict)
    for split, part in samples.items():
        for path in sorted({s.path for s in part} & digests.keys()):
            known = first[digests[path]]
            for other, twin in known.items():
                if other != split and twin != path:
                    yield Finding(Kind.SHARED, str(path), f"in {split}; in {other}: {twin}")
            known.setdefault(split, path)


def _inspections(boxes: Mapping[Path, Sequence[Box]], workers: int) -> Iterator[tuple[Path, Inspection]]:
    """Inspect files, in order, with a progress bar."""
    with ExitStack() as stack:
        inspections: Iterator[Inspection]
        if workers == 1:
            inspections = map(inspect_image, boxes, boxes.values())
        else:
            # Not forked: this process may have threads; and those that decode need no torch. Interrupts are
            # for this process alone, which then drops what no other has begun.
            ignore = (signal.SIGINT, signal.SIG_IGN)
            pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=signal.signal, initargs=ignore)
            stack.callback(pool.shutdown, cancel_futures=True)
            inspections = pool.map(inspect_image, boxes, boxes.values(), chunksize=_CHUNK)
        try:
            yield from zip(boxes, tqdm(inspections, "Decoding", len(boxes), unit=" images"), strict=True)
        except BrokenProcessPool as error:
            raise CxlpError("a process that decodes was killed; for lack of memory? Try fewer --workers") from error
