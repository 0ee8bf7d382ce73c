"""Feature vectors of images, with the network of a run, or of a config and without labels."""

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

#: Maximum number of images to fit heads and principal components to, evenly spaced over all images.
FIT, REDUCE = 2000, 4000


def from_config(arguments: Sequence[str], device: str, precision: Precision) -> Predictor:
    """Build the network of a config, without classifier and with unfitted heads.

    Args:
        arguments: Arguments of ``train.py``; of the keys of ``data``, only ``data.aspect`` and ``data.transform`` have
            an effect.
        device: See :meth:`~cxlp.deploy.predictor.Predictor.to`.
        precision: See :class:`~cxlp.deploy.predictor.Predictor`.

    Raises:
        CxlpError: If the arguments are invalid.
    """
    with describing_data(arguments) as described:
        config = parse(described)
    network = model_of(config).build(None, False)
    pictures = config["data"]["init_args"]
    return Predictor(network, pictures["aspect"], precision, transform=pictures["transform"]).to(device)


@dataclass
class Embedding:
    """Feature vectors of image files, streamed to disk.

    Memory holds one batch and the principal components.

    Args:
        model: Computes the features.
        paths: The image files.
        folder: Folder for temporary files with features and vectors.
        batch_size: Number of images per forward pass.
        workers: Number of processes that decode images.
        progress: Whether to show progress bars.

    Attributes:
        errors: Error messages of files that could not be read, by path.
        components: The principal components that reduced the features; ``None`` if there was no reduction.
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
        """Fit the network's heads to the images, without labels.

        Raises:
            CxlpError: See :func:`~cxlp.frozen.unlabelled.fit_heads`; the message names an unreadable file, if any.
        """
        network, places = self.model.network, spread(len(self.paths), FIT).tolist()
        transform = self.model.transform.at(network.image_size)
        pictures = (batch for _, batch in self._read(places, transform, "Fitting") if len(batch))
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.model.precision == "bf16"):
            try:
                fit_heads(network, pictures, len(places), self.folder)
            except CxlpError as error:
                # The error about too few images may come before any is read; unreadable files may be the cause.
                next(self._read(places[: self.batch_size], transform, "Fitting"), None)
                if len(self.errors) == len(places) == len(self.paths):
                    raise self._none_read() from error
                if not self.errors:
                    raise
                broken = f"{len(self.errors)} of {len(places)} files cannot be read; the first error:"
                raise CxlpError(f"{error}; {broken} {next(iter(self.errors.values()))}") from error

    def embed(self, dim: int | None = None) -> None:
        """Compute the vectors of all files.

        Args:
            dim: Dimension of the vectors, reduced by a PCA of the features of at most :data:`REDUCE` images; ``None``:
                the unreduced features.

        Raises:
            CxlpError: If no file can be read, the disk has too little space, or ``dim`` is too large.
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
            f"none of {len(self.paths)} files can be read; the first error: {next(iter(self.errors.values()), 'none')}"
        )

    def _reduce(self, places: Sequence[int], dim: int) -> None:
        """Fit the principal components to some images, and reduce the features of these images."""
        if len(places) <= dim:
            raise CxlpError(f"--dim {dim} needs more than {dim} images, but there are {len(places)}: lower --dim")
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
                    f"--dim {dim} needs more than {dim} images, but only {len(found)} can be read: lower --dim"
                )
            kept.rows = len(found)
            self.components = principal_components(kept, dim, self.model.device, self.progress)
            for start, stop in kept.blocks():
                self._keep(found[start:stop], self.components.reduce(kept.read(start, stop)))
        finally:
            kept.close()
            file.unlink()

    def _read(self, places: Sequence[int], transform: Transform, what: str) -> Iterator[tuple[list[int], Tensor]]:
        """Read files by index; yield the indices and the images of the readable files of each batch."""
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
        """Number of readable files, and dimension of a vector."""
        assert self._rows is not None
        return int(self._good.sum()), self._rows.dim

    def _blocks(self) -> Iterator[tuple[list[str], np.ndarray[Any, np.dtype[np.float32]]]]:
        """Iterate over blocks of readable files: their paths, and their vectors ``(b, dim)``."""
        assert self._rows is not None
        last = int(self._good.nonzero()[-1]) + 1  # nothing was written after it
        for start, stop in self._rows.blocks(64 << 20):
            stop = min(stop, last)
            good = self._good[start:stop]
            if bool(good.any()):
                names = [self.paths[start + k] for k in good.nonzero()[:, 0].tolist()]
                yield names, self._rows.read(start, stop)[good].numpy()

    def write(self, path: Path) -> None:
        """Write ``features`` ``(n, dim)`` in float32 and ``paths`` of all readable files.

        Args:
            path: The output file: ``.npz`` (NumPy), or ``.parquet`` (a column of paths and a column of lists).
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
                # File names are bytes, which need not be valid UTF-8.
                names = [name.encode(errors="surrogateescape").decode(errors="replace") for name in part]
                lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), self.shape[1])
                writer.write_table(pa.table([pa.array(names), lists], schema=schema))

    def close(self) -> None:
        """Close the temporary files, so that the folder can be deleted."""
        if self._rows is not None:
            self._rows.close()
