"""No private names of Lightning are used or overridden."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.plugins.io import CheckpointIO

import cxlp
import cxlp.runs.stages


def private_names(text: str) -> set[str]:
    """Return the private names that a text defines or assigns."""
    return set(re.findall(r"\b(?:self\.|def )(_[a-z]\w*)", text))


def test_no_private_attribute_of_lightning_is_used() -> None:
    library = "\n".join(path.read_text() for path in Path(str(pl.__file__)).parent.rglob("*.py"))
    sources = [path.read_text() for path in Path(str(cxlp.__file__)).parent.rglob("*.py")]
    assert "_average_model" in private_names(library)
    for text in (text for text in sources if "pytorch_lightning" in text):
        used = set(re.findall(r"\.(_[a-z]\w*)", text)) | set(re.findall(r"\"(_[a-z]\w*)\"", text))
        assert not (used - private_names(text)) & private_names(library)
        assert not re.findall(r"^(?:from|import) pytorch_lightning.*\b_\w+", text, re.MULTILINE)


def test_no_attribute_shadows_a_private_one_of_lightning() -> None:
    ours: list[type] = []
    for base in (pl.LightningModule, pl.LightningDataModule, pl.Callback, CheckpointIO):
        ours += [cls for cls in descendants(base) if cls.__module__.startswith("cxlp.")]
    assert len(set(ours)) >= 8
    for cls in ours:
        for theirs in (parent for parent in cls.__mro__ if parent.__module__.startswith("pytorch_lightning")):
            hidden = private_names(inspect.getsource(cls)) & private_names(inspect.getsource(theirs))
            assert not hidden, (cls, theirs)


def descendants(cls: type) -> Iterator[type]:
    children: list[type] = cls.__subclasses__()
    for child in children:
        yield child
        yield from descendants(child)
