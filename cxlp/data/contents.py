"""Contents of image files, each read once: a digest that identifies the image, and whether the file is intact."""

import hashlib
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from cxlp.data.dataset import Sample
from cxlp.data.decode import is_outside, is_single_scan, read_image
from cxlp.data.metadata import stored_size
from cxlp.utils.distributed import rank, usable_cores
from cxlp.utils.errors import CxlpError
from cxlp.utils.fingerprint import digest
from cxlp.utils.progress import bar

#: Number of broken files that a message names.
_NAMED = 10


class Content(NamedTuple):
    """Properties of a file that was read.

    Attributes:
        digest: SHA-256; empty if the file cannot be read.
        defect: Why the loaders cannot decode the file; empty if no defect was found.
        size: Width and height in pixels, as stored; ``None`` if they are unknown.
    """

    digest: bytes
    defect: str = ""
    size: tuple[int, int] | None = None

    def fingerprint(self, sample: Sample, classes: Sequence[str] | None = None) -> int:
        """Return a 56-bit hash of a sample's content; with ``classes``, of its box and labels, too."""
        content, label = self.digest, sample.label
        if classes is not None:
            shown = classes[label] if isinstance(label, int) else dict(zip(classes, label, strict=True))
            content = digest(content, sample.box, shown).encode()
        return int(digest(content, size=7), 16)

    def defect_of(self, sample: Sample) -> str:
        """Return the defect of the file, or of a sample's box in the file; empty if there is none."""
        if self.defect or self.size is None or sample.box is None or not is_outside(sample.box, *self.size):
            return self.defect
        box, size = " ".join(f"{value:g}" for value in sample.box), " x ".join(map(str, self.size))
        return f"the box {box} lies outside of image {sample.path}, which has {size} pixels"


def read_content(path: Path, decoded: bool = False) -> Content:
    """Read a file, compute its digest, and find out whether it is broken.

    A PNG with correct checksums counts as intact without decoding, and so does a JPEG that is a single scan of
    compressed data up to its end. Other files are decoded in the same way as by the loaders.

    Args:
        path: The file.
        decoded: Whether to decode the file in any case, because some damage in a JPEG's tables is not found otherwise.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, ValueError):  # ValueError: an invalid file name
        return Content(b"", f"image not found: {path}")
    except OSError as error:
        return Content(b"", f"cannot read image {path}: {error.strerror}")
    found = hashlib.sha256(data).digest()
    size, is_whole = _parse(data)
    if decoded or not is_whole:
        try:
            read_image(path)
        except CxlpError as error:
            return Content(found, str(error))
    return Content(found, size=size)


def _parse(data: bytes) -> tuple[tuple[int, int] | None, bool]:
    """Return the size in the image's header, and whether the bytes show that the file is intact."""
    try:
        with Image.open(BytesIO(data)) as image:
            size = stored_size(image)
            if image.format == "PNG":
                return size, _has_checksums(data)
            scan = image.fp.tell()  # type: ignore[union-attr]
            is_common = image.format == "JPEG" and image.mode in ("RGB", "L")
            return size, is_common and is_single_scan(np.frombuffer(data, np.uint8), scan)
    except Exception:  # not an image for Pillow, which may raise anything: left to the decoder
        return None, False


def _has_checksums(data: bytes) -> bool:
    """Return whether a PNG is a sequence of chunks with correct checksums up to its end."""
    at, content = 8, memoryview(data)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if zlib.crc32(content[at + 4 : end - 4]) != int.from_bytes(content[end - 4 : end], "big"):
            return False
        if kind == b"IEND":
            return bool(end == len(data))
        at = end
    return False


def read_contents(paths: Iterable[Path], progress: bool = True, decoded: bool = False) -> dict[Path, Content]:
    """Apply :func:`read_content` to several files, in threads, because reading releases the interpreter lock.

    Args:
        paths: The files; repeated ones are read once.
        progress: Whether rank 0 shows a progress bar on standard error.
        decoded: Whether to decode all files.
    """
    files = list(dict.fromkeys(paths))
    hidden = not progress or rank() != 0
    with (
        ThreadPoolExecutor(usable_cores()) as pool,
        bar("Reading images", len(files), hidden=hidden) as shown,
    ):
        contents = {}
        for path, content in zip(files, pool.map(partial(read_content, decoded=decoded), files), strict=True):
            contents[path] = content
            shown.update()
        return contents


def name_broken(broken: Mapping[Path, str]) -> str:
    """Return lines that name the first broken files, and the number of the others.

    Args:
        broken: The defect of each file.
    """
    shown = [f"\n  {reason}" for _, reason in sorted(broken.items())[:_NAMED]]
    more = [f"\n  and {len(broken) - _NAMED:,} more"] if len(broken) > _NAMED else []
    return "".join([*shown, *more])
