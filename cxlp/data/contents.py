"""Digests of image files, by which a picture is recognised wherever it lies and whatever it is called."""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from cxlp.utils.distributed import rank, usable_cores
from cxlp.utils.errors import CxlpError

#: Seconds after which a progress bar is shown.
_DELAY = 2.0


def content_digest(path: Path) -> bytes:
    """SHA-256 of a file.

    Raises:
        CxlpError: If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise CxlpError(f"cannot read image {path}: {error.strerror}") from error


def content_digests(paths: Iterable[Path], progress: bool = True) -> dict[Path, bytes]:
    """:func:`content_digest` of several files, each read once; in threads, as reading releases Python's lock.

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
        digests = {}
        for path, digest in zip(files, pool.map(content_digest, files), strict=True):
            digests[path] = digest
            bar.update()
        return digests
