"""Suggestions: near spellings first, then what contains the word, else the list."""

import pytest

from cxlp.utils.errors import did_you_mean

FRUIT = ["apple", "apricot", "banana", "cherry", "grape", "grapefruit"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("aple", "Did you mean 'apple', 'grape'?"),  # the nearest first
        ("banana", "Did you mean 'banana'?"),
        ("FRUIT", "Did you mean 'grapefruit'?"),  # far by spelling, but the word is in there
        ("grape", "Did you mean 'grape', 'grapefruit', 'apple'?"),  # each once, though both rules find it
        ("xyz", "Valid: 'apple', 'apricot', 'banana', 'cherry', 'grape', 'grapefruit'."),
    ],
)
def test_what_is_suggested(wrong: str, said: str) -> None:
    assert did_you_mean(wrong, FRUIT) == said


def test_no_more_are_named_than_asked_for() -> None:
    assert did_you_mean("xyz", FRUIT, shown=2) == "Valid: 'apple', 'apricot', ..."
    assert did_you_mean("aple", FRUIT, shown=1) == "Did you mean 'apple'?"
    layers = [f"features.{i}" for i in range(100)]
    assert did_you_mean("features", layers, shown=3).count("features.") == 3


def test_choices_may_be_read_once_only() -> None:
    assert did_you_mean("cherri", iter(FRUIT)) == "Did you mean 'cherry'?"
    assert did_you_mean("xyz", (f for f in FRUIT[:2])) == "Valid: 'apple', 'apricot'."
