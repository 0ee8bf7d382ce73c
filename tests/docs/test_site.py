"""The documentation site: its pages know each public name, and docstrings refer to what there is."""

import importlib
import re
from pathlib import Path

import pytest

import cxlp
from cxlp.data import DATA_MODULES

ROOT = Path(__file__).parents[2]
API = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
#: What docstrings refer to by its whole path.
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
    """Whether a module, or an attribute of one, has this path; of a class also what its docstring describes."""
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
def test_docstrings_refer_to_what_there_is(target: str) -> None:
    assert found(target)


def test_each_page_is_in_the_contents() -> None:
    contents = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.stem == "index" or re.search(rf"^{page.stem}$", contents, re.M), page.name
