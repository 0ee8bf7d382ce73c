"""Import of the main script by spawned processes, which must not start the script's work again."""

import multiprocessing
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cxlp.utils.errors import CxlpError

#: Error message if loader workers import the main script and the script starts a run on import.
IMPORTED_AGAIN = (
    "the loader workers have ended, because they import the script that starts them, and the script starts its run on "
    'import: put the call under if __name__ == "__main__":, or set data.num_workers to 0'
)


@contextmanager
def without_main_script() -> Iterator[None]:
    """Context in which spawned processes do not import the main script, which they do not need.

    The import would execute the script's code that is not under ``if __name__ == "__main__"``.
    """
    main = vars(sys.modules["__main__"])
    kept: dict[str, Any] = {name: main[name] for name in ("__spec__", "__file__") if name in main}
    main["__spec__"] = None  # multiprocessing looks for the script's name here, then for its file in __file__
    main.pop("__file__", None)
    try:
        yield
    finally:
        main.update(kept)


def check_not_imported_again() -> None:
    """Check that this process is not a spawned process that is importing the main script.

    Raises:
        CxlpError: If it is. The message says how to change the script.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise CxlpError(IMPORTED_AGAIN)


def imported_script(error: BaseException) -> bool:
    """Return whether an error means that loader workers ended while importing the main script.

    Workers import it unless they are forked. An exception that is raised inside a worker's data loading is reported
    with its traceback and is not such an error.
    """
    return (
        re.match(r"DataLoader worker .* exited unexpectedly", str(error)) is not None
        and multiprocessing.get_start_method() != "fork"
    )
