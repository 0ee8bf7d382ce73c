"""Transforms given by import path: those of albumentations or torchvision, or modules of your own."""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from cxlp.data.decode import Pixels
from cxlp.utils.errors import CxlpError
from cxlp.utils.importing import import_object

#: A function of an image ``(H, W, 3)``, uint8, and a seed for its random draws; returns the transformed image.
Change = Callable[[Pixels, int], Pixels]


def build_change(described: Mapping[str, Any], key: str, resizes: bool = False) -> Change:
    """Build a transform whose random draws depend only on the seed with which it is called.

    Args:
        described: ``class_path`` and optionally ``init_args``, which may contain further such descriptions. A transform
            of albumentations is called with the image as ``image``. Any other module is called with a tensor
            ``(3, H, W)``, uint8, like transforms of ``torchvision.transforms.v2``, and returns such a tensor.
        key: Config key of the transform, for errors.
        resizes: Whether the transform may change the size of the image.

    Raises:
        CxlpError: If the class cannot be imported, is not such a transform, or does not accept the arguments.
    """
    import albumentations as A  # takes half a second, so only if a run needs it

    change = _build(described, key)
    is_theirs = isinstance(change, A.BasicTransform | A.BaseCompose)
    return _Change(A.Compose([change]) if is_theirs else change, is_theirs, described, key, resizes)


class _Change:
    def __init__(
        self,
        change: Any,  # noqa: ANN401 (either kind)
        of_albumentations: bool,
        described: Mapping[str, Any],
        key: str,
        resizes: bool,
    ) -> None:
        self.change, self.of_albumentations = change, of_albumentations
        self.resizes, self.what = resizes, f"{key}: {described['class_path']}"

    def __call__(self, image: Pixels, seed: int) -> Pixels:
        try:
            changed = self._apply(image, seed)
        except Exception as error:  # a user's transform may raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise CxlpError(f"{self.what} fails on an image of uint8 {image.shape}: {reason}") from error
        expected = (*changed.shape[:2], 3) if self.resizes and isinstance(changed, np.ndarray) else image.shape
        if not isinstance(changed, np.ndarray) or changed.shape != expected or changed.dtype != np.uint8:
            kind = f"{changed.dtype} {changed.shape}" if isinstance(changed, np.ndarray) else type(changed).__name__
            must = "it must be uint8, with 3 channels" if self.resizes else "type and shape must stay the same"
            raise CxlpError(f"{self.what} returns {kind} for an image of uint8 {image.shape}: {must}")
        return np.ascontiguousarray(changed)

    def _apply(self, image: Pixels, seed: int) -> Any:  # noqa: ANN401 (whatever the change makes)
        if self.of_albumentations:
            self.change.set_random_seed(seed)
            return self.change(image=image)["image"]
        with _seeded(seed):
            changed = self.change(torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))))
        if isinstance(changed, torch.Tensor):
            return changed.permute(1, 2, 0).numpy() if changed.ndim == 3 else changed.numpy()
        return changed


def _build(described: Mapping[str, Any], key: str) -> Any:  # noqa: ANN401 (either kind)
    """Build the described transform, inner ones first.

    Only transforms are called: the description may come from a checkpoint, which must not run other code.
    """
    if not isinstance(described.get("class_path"), str) or described.keys() - {"class_path", "init_args"}:
        raise CxlpError(f"{key} is {dict(described)}: set class_path and init_args")
    path = described["class_path"]
    import albumentations as A

    found = import_object(path, key)
    if not (isinstance(found, type) and issubclass(found, A.BasicTransform | A.BaseCompose | nn.Module)):
        raise CxlpError(f"{key}: {path} is neither a transform of albumentations nor an nn.Module")
    try:
        return found(**{name: _filled(value, key) for name, value in (described.get("init_args") or {}).items()})
    except (TypeError, ValueError) as error:
        raise CxlpError(f"{key}: {path} does not accept these init_args: {error}") from error


def _filled(value: Any, key: str) -> Any:  # noqa: ANN401 (any value of a config)
    if isinstance(value, Mapping) and "class_path" in value:
        return _build(value, key)
    return [_filled(part, key) for part in value] if isinstance(value, list) else value


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the generators of torch, NumPy and Python, and restore their states at the end."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
