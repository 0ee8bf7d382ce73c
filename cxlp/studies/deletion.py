"""Deletion of runs, with checks that each folder is certainly a run and lies in the root of the runs."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from cxlp.studies.catalogue import Entry
from cxlp.utils.errors import CxlpError
from cxlp.utils.locking import hold, release_lock

#: Files that a run writes when its first fit begins.
_SIGNS = {"provenance.json", "stages.json"}
#: Files that the folder of a run may contain before its first fit.
_BEGUN = {"config.yaml", ".lock", ".job", "broken.txt"}


def check_deletable(entries: Sequence[Entry], root: Path) -> None:
    """Check that each folder is certainly a run, and lies in the root.

    Raises:
        CxlpError: If a folder is the root, lies outside of it, or is reached by a link; if it is or contains the
            working directory; or if it has none of the files that a run writes when its first fit begins.
    """
    base, working = root.resolve(), Path.cwd()
    bases = base, Path(os.path.abspath(root))  # noqa: PTH100 (links are kept)
    for folder in (entry.folder for entry in entries):
        place = folder.resolve()
        if base not in place.parents:
            raise CxlpError(f"{folder} is not deleted: it is not in {root}, the folder of the runs (--root)")
        if Path(os.path.abspath(folder)) not in [path / place.relative_to(base) for path in bases]:  # noqa: PTH100
            raise CxlpError(f"{folder} is not deleted: its path contains a link. Name the folder itself")
        if place == working or place in working.parents:
            raise CxlpError(f"{folder} is not deleted: it contains the working directory. Change to another folder")
        names = {path.name for path in place.iterdir()}
        if not (names & _SIGNS or names <= _BEGUN):
            raise CxlpError(
                f"{folder} is not deleted: it has neither provenance.json nor stages.json, so it may not be a run of "
                "cxlp. Delete it yourself"
            )


def delete(entries: Sequence[Entry], root: Path) -> None:
    """Delete runs, and folders in the root that become empty.

    Raises:
        CxlpError: If :func:`check_deletable` fails, or a process is working in one of the runs: then no run is deleted.
            Also if a folder cannot be deleted.
    """
    check_deletable(entries, root)
    base, locks = root.resolve(), []
    places = [entry.folder.resolve() for entry in entries]
    try:
        for place in places:
            locks.append(hold(place))  # noqa: PERF401 (if one fails, the locks in the list are released)
        for place in places:
            try:
                shutil.rmtree(place)
            except OSError as error:
                raise CxlpError(f"{place} cannot be deleted: {error.strerror or error}") from error
            for parent in place.parents:
                if parent in (base, Path.cwd()) or any(parent.iterdir()):
                    break
                parent.rmdir()
    finally:
        for lock in locks:
            release_lock(lock)
