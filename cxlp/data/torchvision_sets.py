"""The data sets of torchvision that can be used for classification, and their arguments."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cxlp.utils.errors import CxlpError, did_you_mean

if TYPE_CHECKING:
    from cxlp.data.dataset import Split

Arguments = Mapping["Split", Mapping[str, Any]]
_BY_FLAG: Arguments = {"train": {"train": True}, "test": {"train": False}}
_TWO: Arguments = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE: Arguments = {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}}
_VALID: Arguments = {**_THREE, "val": {"split": "valid"}}
#: Data sets whose test images have no labels are tested on their validation images, as is usual.
_TESTED_ON_VAL: Arguments = {"train": {"split": "train"}, "test": {"split": "val"}}
_NONE: Arguments = {}
#: The arguments that select the splits of each data set; without any, a test set is drawn.
DATA_SETS: dict[str, Arguments] = {
    "CIFAR10": _BY_FLAG, "CIFAR100": _BY_FLAG, "Caltech101": _NONE, "Caltech256": _NONE, "CelebA": _VALID,
    "Country211": _VALID, "DTD": _THREE, "EMNIST": _BY_FLAG, "EuroSAT": _NONE, "FER2013": _TWO, "FGVCAircraft": _THREE,
    "FashionMNIST": _BY_FLAG, "Flowers102": _THREE, "Food101": _TWO, "GTSRB": _TWO,
    "INaturalist": {"train": {"version": "2021_train"}, "test": {"version": "2021_valid"}},
    "ImageNet": _TESTED_ON_VAL, "Imagenette": _TESTED_ON_VAL, "KMNIST": _BY_FLAG, "LFWPeople": _TWO, "MNIST": _BY_FLAG,
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}}, "PCAM": _THREE,
    "Places365": {"train": {"split": "train-standard"}, "test": {"split": "val"}}, "QMNIST": _BY_FLAG,
    "RenderedSST2": _THREE, "SEMEION": _NONE, "STL10": _TWO, "SUN397": _NONE, "SVHN": _TWO, "StanfordCars": _TWO,
    "USPS": _BY_FLAG,
}  # fmt: skip
#: The options that users may set, with the values that select class labels; an empty tuple allows any value.
OPTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "Caltech101": {"target_type": ("category",)}, "CelebA": {"target_type": ("attr",)}, "DTD": {"partition": ()},
    "EMNIST": {"split": ()}, "FGVCAircraft": {"annotation_level": ()}, "Imagenette": {"size": ()},
    "INaturalist": {"target_type": ("full", "kingdom", "phylum", "class", "order", "family", "genus")},
    "LFWPeople": {"image_set": ()}, "OxfordIIITPet": {"target_types": ("category", "binary-category")},
    "Places365": {"small": ()}, "STL10": {"folds": ()},
}  # fmt: skip


def find_data_set(name: str) -> str:
    """Return the name of a data set in the correct case.

    Raises:
        CxlpError: If there is no such data set; the error suggests similar names.
    """
    if not name:
        raise CxlpError("data.name is not set: choose a data set of torchvision, such as Flowers102")
    known = {each.lower(): each for each in DATA_SETS}
    if name.lower() not in known:
        raise CxlpError(
            f"data.name is {name!r}, not a classification data set of torchvision. {did_you_mean(name, DATA_SETS)}"
        )
    return known[name.lower()]
