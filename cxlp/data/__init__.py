"""Data sets as DataModules: one file for each benchmark, and their common parts."""

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from cxlp.data.torchvision_sets import find_data_set
from cxlp.utils.errors import CxlpError, did_you_mean

if TYPE_CHECKING:
    from cxlp.data.datamodule import ImageDataModule

# Set before albumentations is imported, which would otherwise ask PyPI for updates and stall without a network.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

#: Import paths of the DataModules by the name of their config; paths, so that none is imported before it is needed.
DATA_MODULES = {
    "cub200": "cxlp.data.cub200.CUB200",
    "demo": "cxlp.data.demo.Demo",
    "folder": "cxlp.data.folder.Folder",
    "h3d": "cxlp.data.h3d.H3D",
    "mit67": "cxlp.data.mit67.MIT67",
    "table": "cxlp.data.table.Table",
    "torchvision": "cxlp.data.torchvision.Torchvision",
    "voc2007": "cxlp.data.voc2007.VOC2007",
}


def import_data_modules() -> None:
    """Import all DataModules, so that a parser finds them by the names of their classes."""
    for path in DATA_MODULES.values():
        module, _, name = path.rpartition(".")
        getattr(importlib.import_module(module), name)


def data_module(name: str, root: Path | None = None) -> "ImageDataModule":
    """Build a data set's DataModule with default options.

    Args:
        name: One of :data:`DATA_MODULES`, or ``torchvision/NAME``.
        root: Folder of the data set, or file of a table. ``None``: the default of the data set.

    Raises:
        CxlpError: If there is no such data set; the error suggests similar names.
    """
    kind, _, which = name.partition("/")
    if kind not in DATA_MODULES or (which and kind != "torchvision"):
        raise CxlpError(f"there is no data set {name!r}. {did_you_mean(name, DATA_MODULES)}")
    if kind == "torchvision" and not which:
        raise CxlpError("'torchvision' alone names no data set: append one, such as torchvision/Flowers102")
    if kind == "torchvision":
        find_data_set(which)  # before imports that take seconds
    module_path, _, class_name = DATA_MODULES[kind].rpartition(".")
    module_class = getattr(importlib.import_module(module_path), class_name)
    module: ImageDataModule = module_class(*filter(None, (which, root)))
    return module
