"""Vectors of images by a network: of a run, or of a config alone, whose heads are fitted to the images themselves."""

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cxlp.data.transforms import Transform
from cxlp.deploy.predictor import Precision, Predictor
from cxlp.deploy.reading import read_batches
from cxlp.frozen.store import RowStore, check_space
from cxlp.frozen.unlabelled import Components, fit_heads, principal_components
from cxlp.reports.predictions import spread
from cxlp.runs.cli import model_of, parse
from cxlp.runs.places import describing_data
from cxlp.utils.errors import CxlpError
from cxlp.utils.progress import bar

#: Most images that heads without labels, and components, are fitted to; evenly spread over all.
FIT, REDUCE = 2000, 4000


def from_config(arguments: Sequence[str], device: str, precision: Precision) -> Predictor:
    """Build the network of a config, without classes; its heads are not fitted yet.

    Args:
        arguments: As for ``train.py``; keys of ``data`` have no effect, but for ``data.aspect`` and
            ``data.transform``.
        device: See :meth:`~cxlp.deploy.predictor.Predictor.to`.
        precision: See there.

    Raises:
        CxlpError: If they are wrong.
    """
    with describing_data(arguments) as described:
        config = parse(described)
    network = model_of(config).build(None, False)
    pictures = config["data"]["init_args"]
    return Predictor(network, pictures["aspect"], precision, transform=pictures["transform"]).to(device)


@dataclass
class Embedding:
    """Vectors of files, written into a folder as they are made: memory holds one batch, and what components take.

    Args:
        model: Makes features.
        paths: The files.
        folder: Where features and vectors are kept until they are written.
        batch_size: Images that pass through the network together.
        workers: Processes that decode.
        progress: Whether bars are shown.

    Attributes:
        errors: What is wrong with files, by path.
        components: What has reduced the features, if anything has.
    """

    model: Predictor
    paths: Sequence[str]
    folder: Path
    batch_size: int = 32
    workers: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        self.errors: dict[str, str] = {}
        self.components: Components | None = None
        self._rows: RowStore | None = None
        self._good = torch.zeros(len(self.paths), dtype=torch.bool)

    def fit(self) -> None:
        """Fit the network's heads to the images, for want of labels.

        Raises:
            CxlpError: See :func:`~cxlp.frozen.unlabelled.fit_heads`; names files that cannot be read.
        """
        network, places = self.model.network, spread(len(self.paths), FIT).tolist()
        transform = self.model.transform.at(network.image_size)
        pictures = (batch for _, batch in self._read(places, transform, "Fitting") if len(batch))
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.model.precision == "bf16"):
            try:
                fit_heads(network, pictures, len(places), self.folder)
            except CxlpError as error:
                # Too few images are told of before any is read; the broken ones may be why.
                next(self._read(places[: self.batch_size], transform, "Fitting"), None)
                if len(self.errors) == len(places) == len(self.paths):
                    raise self._none_read() from error
                if not self.errors:
                    raise
                broken = f"{len(self.errors)} of {len(places)} files cannot be read, such as"
                raise CxlpError(f"{error}; {broken} {next(iter(self.errors.values()))}") from error

    def embed(self, dim: int | None = None) -> None:
        """Make the vectors of all files.

        Args:
            dim: Their size, by a PCA of the features of at most :data:`REDUCE` images; ``None``: the features as they
                are.

        Raises:
            CxlpError: If no file can be read, the disk is too small, or the features have fewer dimensions.
        """
        size, count = self.model.network.out_features, len(self.paths)
        first = spread(count, REDUCE).tolist() if dim else []
        check_space(self.folder, 4 * (size * len(first) + count * (dim or size)))
        self._rows = RowStore(self.folder / "vectors.bin", count, dim or size)
        if dim:
            self._reduce(first, dim)
        taken = set(first)
        rest = [place for place in range(count) if place not in taken]
        for places, pictures in self._read(rest, self.model.transform, "Embedding"):
            if len(pictures):
                features = self.model.features(pictures)
                self._keep(places, features if self.components is None else self.components.reduce(features))
        if not bool(self._good.any()):
            raise self._none_read()

    def _none_read(self) -> CxlpError:
        return CxlpError(
            f"none of {len(self.paths)} files can be read, such as {next(iter(self.errors.values()), 'none')}"
        )

    def _reduce(self, places: Sequence[int], dim: int) -> None:
        """Fit the components to some images, and reduce these."""
        if len(places) <= dim:
            raise CxlpError(f"--dim {dim} takes more than {dim} images, and it has {len(places)} to go by: lower it")
        file, found = self.folder / "features.bin", list[int]()
        kept = RowStore(file, len(places), self.model.network.out_features)
        try:
            for good, pictures in self._read(places, self.model.transform, "Features"):
                if len(pictures):
                    rows = torch.arange(len(found), len(found) + len(good))
                    kept.write(rows, self.model.features(pictures))
                    found += good
            if len(found) <= dim:
                raise CxlpError(
                    f"--dim {dim} takes more than {dim} images, and only {len(found)} can be read: lower it"
                )
            kept.rows = len(found)
            self.components = principal_components(kept, dim, self.model.device, self.progress)
            for start, stop in kept.blocks():
                self._keep(found[start:stop], self.components.reduce(kept.read(start, stop)))
        finally:
            kept.close()
            file.unlink()

    def _read(self, places: Sequence[int], transform: Transform, what: str) -> Iterator[tuple[list[int], Tensor]]:
        """Read the files at some places: the places of those that can be read, and their pictures."""
        paths, begin = [self.paths[place] for place in places], 0
        with bar(what, len(paths), hidden=not self.progress) as shown:
            for found, pictures in read_batches(paths, transform, self.batch_size, self.workers):
                own = places[begin : begin + len(found)]
                begin += len(found)
                self.errors |= {path: error for path, error in found if error}
                yield [place for place, (_, error) in zip(own, found, strict=True) if not error], pictures
                shown.update(len(found))

    def _keep(self, places: Sequence[int], vectors: Tensor) -> None:
        assert self._rows is not None
        self._rows.write(torch.tensor(places), vectors)
        self._good[list(places)] = True

    # --- files ------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int]:
        """Number of files that could be read, and size of a vector."""
        assert self._rows is not None
        return int(self._good.sum()), self._rows.dim

    def _blocks(self) -> Iterator[tuple[list[str], np.ndarray[Any, np.dtype[np.float32]]]]:
        """Go through the files that could be read: paths, and vectors ``(b, dim)``."""
        assert self._rows is not None
        last = int(self._good.nonzero()[-1]) + 1  # behind it, nothing was written
        for start, stop in self._rows.blocks(64 << 20):
            stop = min(stop, last)
            good = self._good[start:stop]
            if bool(good.any()):
                names = [self.paths[start + k] for k in good.nonzero()[:, 0].tolist()]
                yield names, self._rows.read(start, stop)[good].numpy()

    def write(self, path: Path) -> None:
        """Write ``features`` ``(n, dim)`` float32 and ``paths`` of the files that could be read.

        Args:
            path: Ends in ``.npz`` (NumPy) or ``.parquet`` (a column of lists, and one of paths).
        """
        (self._write_parquet if path.suffix == ".parquet" else self._write_npz)(path)

    def _write_npz(self, path: Path) -> None:
        heading = {"descr": "<f4", "fortran_order": False, "shape": self.shape}
        names: list[str] = []
        with zipfile.ZipFile(path, "w") as archive:
            with archive.open("features.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, heading)
                for part, vectors in self._blocks():
                    names += part
                    file.write(np.ascontiguousarray(vectors, dtype="<f4").tobytes())
            with archive.open("paths.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.array(names), allow_pickle=False)

    def _write_parquet(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema([("path", pa.string()), ("features", pa.list_(pa.float32(), self.shape[1]))])
        with pq.ParquetWriter(path, schema) as writer:
            for part, vectors in self._blocks():
                # Names of files are bytes, and may be no UTF-8.
                names = [name.encode(errors="surrogateescape").decode(errors="replace") for name in part]
                lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), self.shape[1])
                writer.write_table(pa.table([pa.array(names), lists], schema=schema))

    def close(self) -> None:
        """Close what is open; the folder may be deleted then."""
        if self._rows is not None:
            self._rows.close()
