"""Runs deleted: only what is surely one, and lies in the folder of the runs."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from cxlp.studies.catalogue import Entry
from cxlp.utils.errors import CxlpError
from cxlp.utils.locking import hold, let_go

#: Files that a run writes when its first fit begins, and what may lie beside its config until then.
_SIGNS, _BEGUN = {"provenance.json", "stages.json"}, {"config.yaml", ".lock", ".job", "broken.txt"}


def check_deletable(entries: Sequence[Entry], root: Path) -> None:
    """Refuse to delete what is not surely a run, or lies elsewhere than in the root.

    Raises:
        CxlpError: If one is the root, outside of it or behind a link; or is, or holds, the working directory; or has a
            run's config or result, but none of the files that a run writes.
    """
    base, working = root.resolve(), Path.cwd()
    ways = base, Path(os.path.abspath(root))  # noqa: PTH100 (links are kept)
    for folder in (entry.folder for entry in entries):
        place = folder.resolve()
        if base not in place.parents:
            raise CxlpError(f"{folder} is not deleted: it does not lie in {root}, the folder of the runs (--root)")
        if Path(os.path.abspath(folder)) not in [way / place.relative_to(base) for way in ways]:  # noqa: PTH100
            raise CxlpError(f"{folder} is not deleted: it is a link, or behind one. Name the folder itself")
        if place == working or place in working.parents:
            raise CxlpError(f"{folder} is not deleted: you are in it")
        names = {path.name for path in place.iterdir()}
        if not (names & _SIGNS or names <= _BEGUN):
            raise CxlpError(
                f"{folder} is not deleted: it has neither provenance.json nor stages.json, so that it may be no run of "
                "cxlp. Delete it yourself"
            )


def delete(entries: Sequence[Entry], root: Path) -> None:
    """Delete runs, and folders in the root that are empty then.

    Raises:
        CxlpError: See :func:`check_deletable`; or a process is working in one of them; none is deleted then. Or one
            cannot be deleted.
    """
    check_deletable(entries, root)
    base, locks = root.resolve(), []
    places = [entry.folder.resolve() for entry in entries]
    try:
        for place in places:
            locks.append(hold(place))  # noqa: PERF401 (one that fails leaves the others to let go)
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
            let_go(lock)
