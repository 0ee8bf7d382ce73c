"""The configuration reference is up to date and complete."""

import inspect
import runpy
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import cxlp.heads
from cxlp.runs.recipe import ModelConfig

DOCS = Path(__file__).parents[2] / "docs"
reference = runpy.run_path(str(DOCS / "make_configuration.py"))["reference"]


def keys(page: str, title: str) -> set[str]:
    """Return the keys of one section."""
    section = page.partition(f"\n## {title}")[2].partition("\n## ")[0]
    return {line.split("`")[1] for line in section.splitlines() if line.startswith("| `")}


def test_the_page_is_current() -> None:
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert page == reference(), "PYTHONPATH=. python docs/make_configuration.py > docs/configuration.md"


def test_each_key_has_a_meaning() -> None:
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    assert len(rows) > 120
    assert not [row for row in rows if row.endswith("|  |")]


@pytest.mark.parametrize("head", sorted(set(cxlp.heads.__all__) - {"Head"}))
def test_a_head_s_keys_are_its_constructor_s_arguments(head: str) -> None:
    arguments = set(inspect.signature(getattr(cxlp.heads, head)).parameters)
    assert "layers" in arguments
    assert keys(reference(), f"`model.head`, `class_path: {head}`") == arguments - {
        "views"
    }  # described in a separate section


def test_the_model_s_keys_are_in_its_section_or_have_one_of_their_own() -> None:
    page: Any = reference()
    names = {field.name for field in fields(ModelConfig)}
    own = keys(page, "`model`:")
    assert {"head", "start", "closing_fit"} <= own <= names
    for name in names - own:
        assert keys(page, f"`model.{name}`"), name
