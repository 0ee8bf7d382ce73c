"""Stratified random splits of samples."""

from collections.abc import Sequence

import torch
from sklearn.model_selection import train_test_split

from cxlp.data.dataset import Sample, rarest
from cxlp.utils.errors import CxlpError
from cxlp.utils.labels import strata


def split_off(
    samples: Sequence[Sample], classes: Sequence[str], fraction: float, seed: int, failure: str
) -> tuple[list[Sample], list[Sample]]:
    """Split off a fraction of each class; samples of the same file, such as several boxes, stay together.

    Args:
        samples: All samples.
        classes: Class names, for the error.
        fraction: Fraction of the images to split off.
        seed: Seed of the draw.
        failure: Beginning of the error message.

    Returns:
        The remaining samples, and those split off, each in the order of ``samples``.

    Raises:
        CxlpError: If a class has too few images.
    """
    files = {sample.path: sample for sample in reversed(samples)}  # the first sample of each
    paths = list(dict.fromkeys(sample.path for sample in samples))
    groups = strata(torch.tensor([files[path].label for path in paths])).tolist()
    try:
        _, drawn = train_test_split(range(len(paths)), test_size=fraction, stratify=groups, random_state=seed)
    except ValueError as error:  # a class has one image, or one side of the split has fewer images than classes
        least = f"each class needs two images, and each part one of each class ({fraction:g} of {len(paths)})"
        raise CxlpError(f"{failure}{rarest(groups, classes)}: {least}") from error
    part = {paths[i] for i in drawn}
    return [s for s in samples if s.path not in part], [s for s in samples if s.path in part]


def draw_some(samples: Sequence[Sample], images: int, least: int, seed: int = 0) -> list[Sample]:
    """Draw a stratified random part with a least number of images per class.

    Samples of one file stay together. With several labels per image, the rarest label counts.

    Args:
        samples: The samples to draw from.
        images: Approximate number of samples to draw.
        least: Least number of files per class, as far as the class has them.
        seed: Random seed.

    Returns:
        The drawn samples, in the order of ``samples``; all samples if there are no more than ``images``.
    """
    if len(samples) <= images:
        return list(samples)
    files = {sample.path: sample for sample in reversed(samples)}  # the first sample of each
    paths = list(dict.fromkeys(sample.path for sample in samples))
    groups = strata(torch.tensor([files[path].label for path in paths]), 1)
    generator, share = torch.Generator().manual_seed(seed), images / len(samples)
    drawn = set()
    for group in sorted(set(groups.tolist())):
        own = (groups == group).nonzero().flatten()
        count = max(round(share * len(own)), min(least, len(own)))
        drawn |= {paths[i] for i in own[torch.randperm(len(own), generator=generator)[:count]].tolist()}
    return [sample for sample in samples if sample.path in drawn]


def check_fraction(fraction: float) -> None:
    """Check that a test fraction leaves images for both training and test."""
    if not 0 < fraction < 1:
        raise CxlpError(f"test_fraction is {fraction}: it must lie between 0 and 1")
