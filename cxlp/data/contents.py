"""Image files, each read once: a digest by which a picture is recognised wherever it lies, and whether it is whole."""

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
from cxlp.data.decode import is_outside, is_plain, read_image
from cxlp.data.metadata import stored_size
from cxlp.utils.distributed import rank, usable_cores
from cxlp.utils.errors import CxlpError
from cxlp.utils.fingerprint import digest
from cxlp.utils.progress import bar

#: How many broken files a message names.
_NAMED = 10


class Content(NamedTuple):
    """What is known of a file that was read.

    Attributes:
        digest: SHA-256; empty where the file cannot be read.
        defect: Why the loaders cannot decode it; empty: nothing speaks against it.
        size: Width and height in pixels, as stored; ``None`` where they are not known.
    """

    digest: bytes
    defect: str = ""
    size: tuple[int, int] | None = None

    def fingerprint(self, sample: Sample, classes: Sequence[str] | None = None) -> int:
        """Return a number of 56 bits for a sample by this content; with ``classes``, by its box and labels, too."""
        content, label = self.digest, sample.label
        if classes is not None:
            shown = classes[label] if isinstance(label, int) else dict(zip(classes, label, strict=True))
            content = digest(content, sample.box, shown).encode()
        return int(digest(content, size=7), 16)

    def defect_of(self, sample: Sample) -> str:
        """Say what is wrong with a sample of this file: with the file, or with its box."""
        if self.defect or self.size is None or sample.box is None or not is_outside(sample.box, *self.size):
            return self.defect
        box, size = " ".join(f"{value:g}" for value in sample.box), " x ".join(map(str, self.size))
        return f"the box {box} lies outside of image {sample.path}, which has {size} pixels"


def read_content(path: Path, decoded: bool = False) -> Content:
    """Read a file: its digest, and whether it is broken.

    Without decoding, these count as whole: a PNG whose checksums are right, and a JPEG that is one scan of compressed
    data to its very end. Any other file is decoded, as the loaders do it.

    Args:
        path: The file.
        decoded: Whether to decode all files: some damage in a JPEG's tables is not seen otherwise.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, ValueError):  # a name that no file can have
        return Content(b"", f"image not found: {path}")
    except OSError as error:
        return Content(b"", f"cannot read image {path}: {error.strerror}")
    found = hashlib.sha256(data).digest()
    size, is_whole = _look_at(data)
    if decoded or not is_whole:
        try:
            read_image(path)
        except CxlpError as error:
            return Content(found, str(error))
    return Content(found, size=size)


def _look_at(data: bytes) -> tuple[tuple[int, int] | None, bool]:
    """The size that a picture's header says, and whether its bytes show that it is whole."""
    try:
        with Image.open(BytesIO(data)) as image:
            size = stored_size(image)
            if image.format == "PNG":
                return size, _has_checksums(data)
            scan = image.fp.tell()  # type: ignore[union-attr]
            is_common = image.format == "JPEG" and image.mode in ("RGB", "L")
            return size, is_common and is_plain(np.frombuffer(data, np.uint8), scan)
    except Exception:  # whatever Pillow raises for what is no picture: the decoder has the last word
        return None, False


def _has_checksums(data: bytes) -> bool:
    """Whether a PNG is a row of chunks with right checksums to its very end."""
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
    """:func:`read_content` of several files, each read once; in threads, as reading releases Python's lock.

    Args:
        paths: The files.
        progress: Whether to show a progress bar on standard error, of the first process.
        decoded: Whether to decode all of them.
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
    """Name the first broken files, a line each, and say how many there are besides.

    Args:
        broken: What is wrong with each.
    """
    shown = [f"\n  {reason}" for _, reason in sorted(broken.items())[:_NAMED]]
    more = [f"\n  and {len(broken) - _NAMED:,} more"] if len(broken) > _NAMED else []
    return "".join([*shown, *more])
