"""The examples in docstrings."""

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import cxlp
import cxlp.heads

ROOT = Path(cxlp.__file__).parent
FILES = sorted(path for path in ROOT.rglob("*.py") if ">>> " in path.read_text())


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(ROOT)) for file in FILES])
def test_examples(file: Path) -> None:
    module = importlib.import_module(".".join(("cxlp", *file.relative_to(ROOT).with_suffix("").parts)))
    failed, attempted = doctest.testmod(module)
    assert attempted > 0
    assert failed == 0, "the output above names the failed example"


def test_the_main_entries_have_examples() -> None:
    heads = {Path(inspect.getfile(getattr(cxlp.heads, name))).name for name in cxlp.heads.__all__}
    assert heads | {"backbone.py", "network.py", "predictor.py"} <= {file.name for file in FILES}
