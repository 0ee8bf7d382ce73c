"""Checks of a whole data set: errors that stop a run, data that bias the results, and conversions of the loaders."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from pathlib import Path

from cxlp.data.datamodule import ImageDataModule
from cxlp.data.dataset import Content, Sample, Split, list_defects
from cxlp.data.decode import Box
from cxlp.data.inspection import Finding, Kind, inspect_image
from cxlp.data.jpeg_warnings import captured_warnings, decode_all
from cxlp.data.lists import TotalsError
from cxlp.utils.errors import CxlpError
from cxlp.utils.progress import bar

#: Number of files decoded between two reads of libjpeg's warnings.
_BATCH = 64


@dataclass(frozen=True)
class Counts:
    """Numbers of samples, classes and labels of a split.

    Attributes:
        images: Number of samples.
        classes: Number of classes that have samples.
        fewest: Number of samples of the rarest of these classes.
        most: Number of samples of the most frequent class.
        positives: Number of labels 1 over all classes; with one label per image, the number of samples.
        ignored: Number of labels 0.
    """

    images: int
    classes: int
    fewest: int
    most: int
    positives: int
    ignored: int


@dataclass(frozen=True)
class Report:
    """Result of :func:`check`.

    Attributes:
        counts: Counts by split, and of ``train + val`` if there are official validation images.
        findings: Findings by kind, in the order of the kinds; kinds without findings are left out.
        files: Number of distinct files that the splits use.
        decoded: Number of these files that could be decoded.
    """

    counts: dict[str, Counts]
    findings: dict[Kind, list[Finding]]
    files: int
    decoded: int

    @property
    def defects(self) -> int:
        """The number of findings that stop a run."""
        return sum(len(found) for kind, found in self.findings.items() if kind.stops)


def check(data: ImageDataModule, workers: int) -> Report:
    """Decode all images that the splits use, and compare the lists with each other. Nothing is downloaded.

    Boxes are checked even if a run would not use them. The check does not stop at the first finding.

    Args:
        data: The data set.
        workers: Number of decoding threads.

    Raises:
        CxlpError: If the data set is missing, or its lists cannot be read.
    """
    findings, (classes, samples) = _read_with_boxes(data)
    if not data.root.is_dir():
        raise CxlpError(
            f"{data.name}: there is no folder {data.root.absolute()}: download the data set, or name its folder by "
            "--root"
        )
    fitted = [*samples["train"], *samples.get("val", [])]
    findings += [Finding(Kind.LISTS, d) for d in list_defects(classes, {"train": fitted, "test": samples["test"]})]
    findings += [*_unusual_entries("train", fitted), *_unusual_entries("test", samples["test"])]
    sizes = _class_sizes(fitted)
    findings += [Finding(Kind.SINGLE, name) for k, name in enumerate(classes) if sizes[k] == 1]
    if samples["test"]:
        shown = _class_sizes(samples["test"])
        findings += [Finding(Kind.NO_TEST, name) for k, name in enumerate(classes) if k not in shown]
    counts = {str(split): _count(part) for split, part in samples.items()}
    if "val" in samples:
        counts["train + val"] = _count(fitted)

    boxes: dict[Path, list[Box]] = {}
    for sample in (s for part in samples.values() for s in part):
        boxes.setdefault(sample.path, []).extend([] if sample.box is None else [sample.box])
    digests: dict[Path, bytes] = {}
    for path, (found, digest) in _inspections(boxes, workers):
        findings += found
        if digest:
            digests[path] = digest
    findings += _copies(samples, digests, boxed=bool(getattr(data, "bbox", False)))
    by_kind = {kind: [finding for finding in findings if finding.kind is kind] for kind in Kind}
    return Report(counts, {kind: some for kind, some in by_kind.items() if some}, len(boxes), len(digests))


def _read_with_boxes(data: ImageDataModule) -> tuple[list[Finding], Content]:
    data = copy(data)
    vars(data)["on_broken"] = "skip"  # otherwise a table would stop at the first missing file
    boxed = copy(data)
    if hasattr(data, "bbox"):
        vars(boxed)["bbox"] = True
    try:
        return _read(boxed)
    except CxlpError as error:
        findings, content = _read(data)  # raises an error that does not depend on the boxes again
        return [Finding(Kind.BOX_LIST, str(error)), *findings], content


def _read(data: ImageDataModule) -> tuple[list[Finding], Content]:
    """Read the lists; wrong totals of images are a finding rather than an error."""
    try:
        return [], data.read()
    except TotalsError as error:
        return [Finding(Kind.LISTS, str(error))], error.content
    except OSError as error:
        raise CxlpError(f"{data.name}: cannot read {data.root}: {error}") from error


def _class_sizes(samples: Sequence[Sample]) -> Counter[int]:
    """Count the samples of each class."""
    labels = [s.label for s in samples]
    single = Counter(label for label in labels if isinstance(label, int))
    return single + Counter(
        k for row in labels if not isinstance(row, int) for k, label in enumerate(row) if label == 1
    )


def _count(samples: Sequence[Sample]) -> Counts:
    sizes = _class_sizes(samples)
    fewest, most = min(sizes.values(), default=0), max(sizes.values(), default=0)
    ignored = sum(s.label.count(0) for s in samples if not isinstance(s.label, int))
    return Counts(len(samples), len(sizes), fewest, most, sizes.total(), ignored)


def _unusual_entries(split: Split, samples: Sequence[Sample]) -> Iterator[Finding]:
    """Yield unusual entries of a list that do not stop a run."""
    seen = set()
    some_box = any(s.box for s in samples)
    for path, label, box in samples:
        if (path, box) in seen:
            yield Finding(Kind.REPEATED, str(path), f"in {split}")
        seen.add((path, box))
        if not isinstance(label, int) and not any(label):
            yield Finding(Kind.UNSPECIFIED, str(path), f"in {split}")
        if some_box and box is None:
            yield Finding(Kind.NO_BOX, str(path), f"in {split}")


def _copies(samples: Mapping[Split, Sequence[Sample]], digests: Mapping[Path, bytes], boxed: bool) -> Iterator[Finding]:
    """Yield files with the same pixels as an earlier file; the same file in two splits is reported elsewhere.

    If images are cropped to boxes, different boxes in the same image of a split are different samples.
    """
    first: dict[bytes, tuple[Split, Sample]] = {}
    for split, part in samples.items():
        decoded = sorted((s for s in part if s.path in digests), key=lambda s: s.path)
        for sample in {s.path: s for s in decoded}.values():
            other, twin = first.setdefault(digests[sample.path], (split, sample))
            if other != split and twin.path != sample.path:
                unlike = "" if twin.label == sample.label else ", with other labels"
                yield Finding(Kind.SHARED, str(sample.path), f"in {split}; in {other}: {twin.path}{unlike}")
        seen: dict[tuple[bytes, Box | None], Sample] = {}
        for sample in decoded:
            earlier = seen.setdefault((digests[sample.path], sample.box if boxed else None), sample)
            if earlier.label != sample.label:
                yield Finding(Kind.CONTRADICTED, str(sample.path), f"in {split}, as {earlier.path}")
            elif earlier.path != sample.path:
                yield Finding(Kind.DUPLICATED, str(sample.path), f"in {split}, as {earlier.path}")


def _inspections(
    boxes: Mapping[Path, Sequence[Box]], workers: int
) -> Iterator[tuple[Path, tuple[list[Finding], bytes | None]]]:
    """Inspect files in order, with a progress bar; in threads, because decoders release the interpreter lock."""
    pool = ThreadPoolExecutor(workers)
    paths = list(boxes)
    with (
        captured_warnings() as captured,
        bar("Decoding", len(paths), to=captured.stream) as progress,
    ):
        try:
            for start in range(0, len(paths), _BATCH):
                batch = paths[start : start + _BATCH]
                found = []
                for inspected in pool.map(inspect_image, batch, map(boxes.__getitem__, batch)):
                    found.append(inspected)
                    progress.update()
                if captured.take():  # a JPEG of the batch is damaged: decode again, one by one, to find it
                    for path, (findings, digest) in zip(batch, found, strict=True):
                        decode_all(path)
                        said = captured.take()
                        if digest is not None:
                            findings += [Finding(Kind.DAMAGED, str(path), line) for line in said]
                yield from zip(batch, found, strict=True)
        finally:
            pool.shutdown(cancel_futures=True)
