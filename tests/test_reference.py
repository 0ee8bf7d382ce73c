"""The configuration reference: it is current, and whole."""

from dataclasses import fields
from pathlib import Path

from cxlp.parts import PoolingConfig
from cxlp.reference import reference


def test_the_page_is_current() -> None:
    page = Path(__file__).parent.parent / "docs" / "configuration.md"
    assert page.read_text(encoding="utf-8") == reference(), "python -m cxlp.reference > docs/configuration.md"


def test_each_key_has_a_meaning() -> None:
    page = reference()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 70
    assert not [row for row in rows if row.endswith("|  |")]
    section = page.partition("## `model.network.pooling`")[2].partition("\n## ")[0]
    keys = {line.split("`")[1] for line in section.splitlines() if line.startswith("| `")}
    assert keys == {field.name for field in fields(PoolingConfig)} - {"views"}
