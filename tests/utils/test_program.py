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
def test_the_end_of_a_program_looks_for_no_garbage(how: str, printed: str) -> None:
    done = subprocess.run([sys.executable, "-c", CYCLE, how], check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (printed, "")


def test_the_collector_is_as_it_was_after_an_import_that_fails() -> None:
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
