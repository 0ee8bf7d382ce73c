"""Selection of test images from any data set, whose classes are matched to a network's classes by name."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from cxlp.data.datamodule import ImageDataModule
from cxlp.data.dataset import Sample
from cxlp.models.network import Network
from cxlp.utils.errors import CxlpError

#: The images to test.
Chosen = Literal["train", "val", "test", "all"]
#: Numeric prefix of class names, as in CUB-200-2011.
_NUMBER = re.compile(r"\d{3,}\.")


def choose_images(
    data: ImageDataModule, network: Network, chosen: Chosen | None, held: Mapping[str, Tensor] | None = None
) -> tuple[Chosen, list[str]]:
    """Make the chosen images of a DataModule its test split, labelled with the network's classes.

    Classes are matched by name, see :func:`match_classes`. Images of classes unknown to the network are left out. If
    images have several labels, only the unknown labels are left out.

    Args:
        data: A DataModule that is not set up yet.
        network: The network to test.
        chosen: The images to test; ``None``: the data set's test images, or all images if it has no test split.
        held: Marks of the images in each split of the network's run, see :class:`~cxlp.runs.protocol.Images`; ``None``
            or empty for other data.

    Returns:
        The images that were chosen, and messages about the match, one line each.

    Raises:
        CxlpError: If there are no such images, no image has a class of the network, or a split differs from the run's.
    """
    notes: list[str] = []
    if chosen in ("train", "val"):  # the same split as in the run
        data.setup()
        classes, samples = data.classes, list(data.splits[chosen].samples)
        if samples and held and not torch.equal(data.fingerprints(chosen, True), held[chosen]):
            raise CxlpError(
                f"--split {chosen}: its images differ from those in the checkpoint's run, so it may contain training "
                "images: give the run's data.validation, data.split_seed and data.test_fraction"
            )
    else:
        data.makes_split = False
        classes, content = data.read_usable()
        if chosen == "test" and "test" not in content:
            data.makes_split = True
            data.left_out.clear()
            classes, content = data.read_usable()
            if not held:
                notes.append(f"note: {data.name} has no test split: testing on a part of it (data.test_fraction)")
        chosen = chosen or ("test" if "test" in content else "all")
        samples = [sample for split, part in content.items() if chosen in ("all", split) for sample in part]
    if not samples:
        none = ": none are held out (data.validation)" if chosen == "val" else ""
        raise CxlpError(f"{data.name} has no images for --split {chosen}{none}")
    several = not isinstance(samples[0].label, int)
    if several != network.multi_label:
        kinds = ("one label per image", "several labels per image")
        raise CxlpError(f"{data.name} has {kinds[several]}, but the checkpoint's network takes {kinds[not several]}")
    places = match_classes(classes, network.classes)
    kept = [relabelled for s in samples if (relabelled := _relabel(s, places, len(network.classes))) is not None]
    if not kept:
        raise CxlpError(
            f"{data.name} has no image of the network's classes ({', '.join(network.classes[:3])}, ...): it "
            f"has {', '.join(classes[:3])}, ..."
        )
    data.classes = network.classes
    data.splits = {"test": data.dataset(kept, network.classes)}
    data.left_out = Counter(data.left_out)
    pairs = [(classes[k], network.classes[place]) for k, place in places.items()]
    if loose := [f"{theirs} = {ours}" for theirs, ours in pairs if theirs != ours]:
        notes.append(f"note: {len(loose)} classes are matched despite different spelling: {', '.join(loose)}")
    shown = {k for s in kept for k in _present(s)}
    if missing := [name for k, name in enumerate(network.classes) if k not in shown]:
        notes.append(
            f"note: {len(missing)} of the network's {len(network.classes)} classes have no image here: "
            f"{_shorten(missing)}"
        )
    if unknown := [name for k, name in enumerate(classes) if k not in places]:
        count = len(samples) - len(kept)
        notes.append(f"note: {len(unknown)} classes are unknown to the network: {_shorten(unknown)}")
        if count:
            data.left_out["of classes that the network does not know"] += count
            notes.append(f"note: {count:,} images of these classes are left out")
    return chosen, notes


def match_classes(theirs: Sequence[str], ours: Sequence[str]) -> dict[int, int]:
    """Match the classes of a data set to a network's classes by name.

    Names match if they are equal or, where the match is one to one, if they are equal up to case, hyphens, underscores
    and spaces. Prefixes such as ``001.`` are ignored if all classes on one side have them, but not all on the other.

    Returns:
        A mapping of indices in ``theirs`` to indices in ``ours``.
    """
    known = {name: k for k, name in enumerate(ours)}
    found = {k: known[name] for k, name in enumerate(theirs) if name in known}
    numbered = [all(_NUMBER.match(name) for name in names) for names in (theirs, ours)]
    left: list[dict[str, list[int]]] = [{}, {}]
    for side, (names, taken) in enumerate(((theirs, found.keys()), (ours, set(found.values())))):
        for k, name in enumerate(names):
            if k not in taken:
                bare = _NUMBER.sub("", name) if numbered[side] and not all(numbered) else name
                left[side].setdefault(re.sub(r"[_-]", " ", bare).strip().casefold(), []).append(k)
    for name, places in left[0].items():
        others = left[1].get(name, [])
        if len(places) == len(others) == 1:
            found[places[0]] = others[0]
    return found


def _present(sample: Sample) -> list[int]:
    """Indices of the classes that an image shows."""
    return [sample.label] if isinstance(sample.label, int) else [k for k, v in enumerate(sample.label) if v > 0]


def _relabel(sample: Sample, places: Mapping[int, int], classes: int) -> Sample | None:
    if isinstance(sample.label, int):
        return sample._replace(label=places[sample.label]) if sample.label in places else None
    row = [0] * classes
    for k, value in enumerate(sample.label):
        if k in places:
            row[places[k]] = value
    return sample._replace(label=tuple(row))


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
