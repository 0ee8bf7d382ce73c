"""The options that are read from sources are those of the classes."""

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import pytorch_lightning as pl
from jsonargparse import ArgumentParser

import cxlp.heads
from cxlp.runs.arguments import CLASSES
from cxlp.runs.loggers import RunConfig
from cxlp.runs.recipe import ModelConfig
from cxlp.utils.importing import import_object
from cxlp.utils.sources import exported, keys_of, options_of


@pytest.mark.parametrize("path", [path for paths in CLASSES.values() for path in paths])
def test_the_options_of_heads_and_data_sets_are_the_parser_s(path: str) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(import_object(path, "class"))
    options = options_of(path)
    assert options is not None
    assert list(keys_of(options)) == [key for key, _ in parser.get_defaults().items(branches=False)]


def test_the_options_of_dataclasses_and_of_the_trainer() -> None:
    for cls, path in ((ModelConfig, "cxlp.runs.recipe.ModelConfig"), (RunConfig, "cxlp.runs.loggers.RunConfig")):
        assert list(options_of(path) or ()) == [field.name for field in dataclasses.fields(cls)]
    trainer = options_of("pytorch_lightning.Trainer")
    assert trainer is not None and list(trainer) == list(inspect.signature(pl.Trainer).parameters)
    assert trainer["max_epochs"] == int | None and trainer["callbacks"] is None  # not plain


def test_types_are_plain_or_unknown() -> None:
    model = options_of("cxlp.runs.recipe.ModelConfig")
    assert model is not None
    assert model["backbone"]["activation"] == Literal["after", "before"]
    assert model["frozen"]["c"] == float | Literal["auto"]
    assert model["head"] is None and model["backbone"]["layers"] is None


def test_what_a_package_exports() -> None:
    assert exported("cxlp.heads") == tuple(cxlp.heads.__all__)


def test_inheritance_and_names_that_are_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_package"
    package.mkdir()
    (package / "__init__.py").write_text("from some_package.second import Derived as Public\nraise RuntimeError\n")
    (package / "first.py").write_text(
        "class Base:\n    def __init__(self, root: str, size: 'int' = 1, **common): ...\nclass Own(Base):\n    pass\n"
    )
    (package / "second.py").write_text(
        "from some_package.first import Own\nclass Derived(Own):\n"
        "    def __init__(self, root: str = 'x', *, flip: bool = True, **common): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert options_of("some_package.Public") == {"root": str, "flip": bool, "size": None}
    assert options_of("some_package.Missing") is None and options_of("no_such_package.X") is None


def test_parsing_sources_imports_nothing() -> None:
    code = (
        "import sys; from cxlp.utils.sources import options_of; assert options_of('pytorch_lightning.Trainer');"
        "assert options_of('cxlp.heads.CrossLayerPooling'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
