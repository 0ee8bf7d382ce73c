"""Digests of image files, by which a picture is recognised wherever it lies and whatever it is called."""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cxlp.utils.distributed import usable_cores
from cxlp.utils.errors import CxlpError


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


def content_digests(paths: Iterable[Path]) -> dict[Path, bytes]:
    """:func:`content_digest` of several files, each read once; in threads, as reading releases Python's lock."""
    files = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(usable_cores()) as pool:
        return dict(zip(files, pool.map(content_digest, files), strict=True))
