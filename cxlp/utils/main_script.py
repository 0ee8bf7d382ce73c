"""The script that runs, which spawned processes import, so that it must not begin its work there once more."""

import multiprocessing
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cxlp.utils.errors import CxlpError

#: What is said where processes that load images import the script that runs, and that begins a run at once.
IMPORTED_AGAIN = (
    "processes that load images have ended: they import the script that starts them, which must not begin its run once "
    'more. Put the call under if __name__ == "__main__":, or set data.num_workers to 0'
)


@contextmanager
def starting_without_main() -> Iterator[None]:
    """Have processes that are spawned inside a ``with`` not import the script that runs, of which they need nothing.

    They would do what it does, unless that stands under ``if __name__ == "__main__"``.
    """
    main = vars(sys.modules["__main__"])
    kept: dict[str, Any] = {name: main[name] for name in ("__spec__", "__file__") if name in main}
    main["__spec__"] = None  # what multiprocessing looks at: first by which name, then in which file it is
    main.pop("__file__", None)
    try:
        yield
    finally:
        main.update(kept)


def check_not_imported_again() -> None:
    """Refuse to begin where a process that loads images imports the script that has started it.

    Raises:
        CxlpError: Says how the script must be written.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise CxlpError(IMPORTED_AGAIN)


def imported_script(error: BaseException) -> bool:
    """Whether loading processes have ended that, by how they are started here, import the script that runs.

    What is raised in such a process is told with its traceback, and is no such end.
    """
    return (
        re.match(r"DataLoader worker .* exited unexpectedly", str(error)) is not None
        and multiprocessing.get_start_method() != "fork"
    )
