"""Suggestions: similar spellings first, then names that contain the word, otherwise the list."""

import pytest

from cxlp.utils.errors import did_you_mean

FRUIT = ["apple", "apricot", "banana", "cherry", "grape", "grapefruit"]


ALL = "Valid: apple, apricot, banana, cherry, grape, grapefruit."


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("aple", f"Did you mean 'apple'? {ALL}"),
        ("banana", f"Did you mean 'banana'? {ALL}"),
        ("GRAPE", f"Did you mean 'grape'? {ALL}"),
        ("FRUIT", f"Did you mean 'grapefruit'? {ALL}"),  # the spelling differs, but the name contains the word
        ("xyz", ALL),
        ("", ALL),
    ],
)
def test_the_nearest_is_suggested_and_all_are_listed_once(wrong: str, said: str) -> None:
    assert did_you_mean(wrong, FRUIT) == said


def test_the_nearest_of_many_are_listed() -> None:
    layers = [f"features.{i}" for i in range(100)] + ["head"]
    said = did_you_mean("heat", layers)
    assert said == "Did you mean 'head'? Valid: head, ... (101 in all)."
    assert did_you_mean("features", layers).count("features.") == 1 + 8


def test_choices_may_be_an_iterator_and_long_names_are_quoted() -> None:
    assert did_you_mean("cherri", iter(["cherry", "red cherry, ripe", "cherry"])) == (
        "Did you mean 'cherry'? Valid: cherry, 'red cherry, ripe'."
    )
    assert did_you_mean("x", []) == ""
