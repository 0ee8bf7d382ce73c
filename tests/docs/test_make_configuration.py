"""The configuration reference: it is current, and whole."""

import runpy
from dataclasses import fields
from pathlib import Path

from cxlp.models.branch import PoolingConfig

DOCS = Path(__file__).parents[2] / "docs"
reference = runpy.run_path(str(DOCS / "make_configuration.py"))["reference"]


def test_the_page_is_current() -> None:
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert page == reference(), "python docs/make_configuration.py > docs/configuration.md"


def test_each_key_has_a_meaning() -> None:
    page = reference()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 70
    assert not [row for row in rows if row.endswith("|  |")]
    section = page.partition("## `model.network.pooling`")[2].partition("\n## ")[0]
    keys = {line.split("`")[1] for line in section.splitlines() if line.startswith("| `")}
    assert keys == {field.name for field in fields(PoolingConfig)} - {"views"}
