"""Python's garbage collector in the commands."""

import gc
import subprocess
import sys

import pytest

from cxlp.utils.program import collecting_no_garbage

CYCLE = """
import sys
from cxlp.utils.program import end_without_collecting

class Deleted:
    def __init__(self):
        self.own = self
    def __del__(self):
        print("collected")

if sys.argv[1] == "quickly":
    end_without_collecting()
    end_without_collecting()
cycle = Deleted()
"""


@pytest.mark.parametrize(("how", "printed"), [("as usual", "collected\n"), ("quickly", "")])
def test_garbage_collection_is_skipped_at_exit(how: str, printed: str) -> None:
    done = subprocess.run([sys.executable, "-c", CYCLE, how], check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (printed, "")


def test_the_garbage_collector_is_restored_after_a_failed_import() -> None:
    assert gc.isenabled()
    with pytest.raises(ImportError), collecting_no_garbage():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()
    gc.disable()
    try:
        with collecting_no_garbage():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
