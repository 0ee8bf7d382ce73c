"""A few items of ``python -m tests.fuzz``, and a check that it detects defects."""

import time
from pathlib import Path

import pytest

from cxlp.utils.errors import CxlpError
from tests import fuzz
from tests.fuzz import KINDS, Rng, attempt

ITEMS = 12


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_mangled_input_ends_with_a_result_or_one_clear_error(kind: str) -> None:
    found = {number: attempt(kind, number, seed=3) for number in range(ITEMS)}
    assert {number: outcome.said for number, outcome in found.items() if outcome.verdict.isupper()} == {}
    assert {outcome.verdict for outcome in found.values()} <= {"result", "refused"}


def fail() -> None:
    raise IndexError("mine")


def refuse_at_length() -> None:
    raise CxlpError("a\n" * 50)


def wait() -> None:
    time.sleep(60)


@pytest.mark.parametrize(("work", "verdict"), [(fail, "RAISES"), (refuse_at_length, "UNCLEAR"), (wait, "HANGS")])
def test_defects_are_found(monkeypatch: pytest.MonkeyPatch, work: object, verdict: str) -> None:
    def make(folder: Path, rng: Rng) -> object:
        return work

    monkeypatch.setitem(fuzz.KINDS, "images", make)
    monkeypatch.setattr(fuzz, "LIMIT", 0.1)
    assert attempt("images", 0).verdict == verdict
