"""The documentation site: its pages mention each public name, and docstrings refer to existing names."""

import importlib
import json
import re
from pathlib import Path

import pytest

import cxlp
from cxlp.data import DATA_MODULES

ROOT = Path(__file__).parents[2]
API = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
#: The full paths to which docstrings refer.
TARGETS = sorted(
    {
        target
        for file in (ROOT / "cxlp").rglob("*.py")
        for target in re.findall(r":\w+:`~?(cxlp\.[\w.]+)`", file.read_text(encoding="utf-8"))
    }
)


@pytest.mark.parametrize("name", [*(f"cxlp.{name}" for name in sorted(cxlp.__all__)), *DATA_MODULES.values()])
def test_each_public_name_has_a_place_on_the_site(name: str) -> None:
    if name != "cxlp.__version__":
        assert re.search(rf"^\.\. auto(class|function|exception):: {re.escape(name)}$", API, re.M)


def found(path: str) -> bool:
    """Return whether a module or attribute with this path exists, or is described in its class's docstring."""
    parts = path.split(".")
    for split in range(len(parts), 0, -1):
        try:
            place = importlib.import_module(".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[split:]:
            if not hasattr(place, attribute):
                return f"{attribute}:" in (getattr(place, "__doc__", None) or "")
            place = getattr(place, attribute)
        return True
    return False


@pytest.mark.parametrize("target", TARGETS)
def test_references_in_docstrings_exist(target: str) -> None:
    assert found(target)


def test_each_page_is_in_the_table_of_contents() -> None:
    contents = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    docs = ROOT / "docs"
    for page in (*docs.glob("*.md"), *docs.glob("tutorials/*.ipynb")):
        place = page.relative_to(docs).with_suffix("").as_posix()
        assert place == "index" or re.search(rf"^{place}$", contents, re.M), page.name


def test_notebooks_have_no_outputs() -> None:
    """Notebooks are executed when the site is built, because they take longer than a few seconds."""
    for notebook in (ROOT / "docs" / "tutorials").glob("*.ipynb"):
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        assert len(cells) > 5
        assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]
