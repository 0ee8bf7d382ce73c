"""Image files, each read once: a digest by which a picture is recognised wherever it lies, and whether it is whole."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image
from tqdm import tqdm

from cxlp.data.decode import read_image
from cxlp.utils.distributed import rank, usable_cores
from cxlp.utils.errors import CxlpError

#: Seconds after which a progress bar is shown.
_DELAY = 2.0
#: How many broken files a message names.
_NAMED = 10
#: What files end in, by their format.
_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "WEBP": b""}


class Content(NamedTuple):
    """What is known of a file that was read.

    Attributes:
        digest: SHA-256; empty where the file cannot be read.
        defect: Why the loaders cannot decode it; empty: nothing speaks against it.
    """

    digest: bytes
    defect: str = ""


def read_content(path: Path) -> Content:
    """Read a file: its digest, and whether it is broken.

    A JPEG, PNG or WebP whose header can be read, and that ends as it must, counts as whole. (Pillow refuses to open
    a WebP that is truncated.) Any other file is decoded, as the loaders do it.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
            if _seems_whole(file):
                return Content(digest)
    except FileNotFoundError:
        return Content(b"", f"image not found: {path}")
    except OSError as error:
        return Content(b"", f"cannot read image {path}: {error.strerror}")
    try:
        read_image(path)
    except CxlpError as error:
        return Content(digest, str(error))
    return Content(digest)


def _seems_whole(file: BinaryIO) -> bool:
    file.seek(0)
    try:
        with Image.open(file) as image:
            end = _ENDS.get(image.format or "")
            if end is None:
                return False
            file.seek(-len(end), os.SEEK_END)
            return file.read() == end
    except Exception:  # whatever Pillow raises for what is no picture: the decoder has the last word
        return False


def read_contents(paths: Iterable[Path], progress: bool = True) -> dict[Path, Content]:
    """:func:`read_content` of several files, each read once; in threads, as reading releases Python's lock.

    Args:
        paths: The files.
        progress: Whether to show a progress bar on standard error, of the first process, after two seconds.
    """
    files = list(dict.fromkeys(paths))
    hidden = not progress or rank() != 0
    with (
        ThreadPoolExecutor(usable_cores()) as pool,
        tqdm(desc="Reading images", total=len(files), unit=" images", disable=hidden, leave=False, delay=_DELAY) as bar,
    ):
        contents = {}
        for path, content in zip(files, pool.map(read_content, files), strict=True):
            contents[path] = content
            bar.update()
        return contents


def name_broken(broken: Mapping[Path, str]) -> str:
    """Name the first broken files, a line each, and say how many there are besides.

    Args:
        broken: What is wrong with each.
    """
    shown = [f"\n  {reason}" for _, reason in sorted(broken.items())[:_NAMED]]
    more = [f"\n  and {len(broken) - _NAMED:,} more"] if len(broken) > _NAMED else []
    return "".join([*shown, *more])
