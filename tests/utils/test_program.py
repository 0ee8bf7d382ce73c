"""Python's garbage collector in the commands."""

import gc
import subprocess
import sys

import pytest

from cxlp.utils.program import without_garbage_collection

CYCLE = """
import sys
from cxlp.utils.program import skip_collection_at_exit

class Deleted:
    def __init__(self):
        self.own = self
    def __del__(self):
        print("collected")

if sys.argv[1] == "quickly":
    skip_collection_at_exit()
    skip_collection_at_exit()
cycle = Deleted()
"""


@pytest.mark.parametrize(("how", "printed"), [("as usual", "collected\n"), ("quickly", "")])
def test_garbage_collection_is_skipped_at_exit(how: str, printed: str) -> None:
    done = subprocess.run([sys.executable, "-c", CYCLE, how], check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (printed, "")


def test_the_garbage_collector_is_restored_after_a_failed_import() -> None:
    assert gc.isenabled()
    with pytest.raises(ImportError), without_garbage_collection():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()
    gc.disable()
    try:
        with without_garbage_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
