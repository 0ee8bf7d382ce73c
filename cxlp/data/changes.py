"""Random changes of one's own: transforms of albumentations or torchvision, or any callable, by their import paths."""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cxlp.data.decode import Pixels
from cxlp.utils.errors import CxlpError
from cxlp.utils.importing import import_object

if TYPE_CHECKING:
    import albumentations as A

#: Changes a picture ``(S, S, 3)``, uint8, by draws from a seed.
Change = Callable[[Pixels, int], Pixels]


def build_change(described: Mapping[str, Any]) -> Change:
    """Build a change, whose draws depend on the seed only that it is called with.

    Args:
        described: ``class_path`` and perhaps ``init_args``, which may hold further such descriptions. A transform of
            albumentations gets the picture as its ``image``; anything else is called with a tensor ``(3, S, S)``,
            uint8, as transforms of ``torchvision.transforms.v2`` are, and returns such a tensor.

    Raises:
        CxlpError: If it cannot be imported, or does not take the arguments.
    """
    import albumentations as A

    path = described.get("class_path")
    change = _build(described)
    if isinstance(change, A.BasicTransform | A.BaseCompose):
        return _Albumentation(A.Compose([change]), str(path))
    if not callable(change):
        raise CxlpError(f"data.augment.custom: {path} makes {type(change).__name__}, which cannot be called")
    return _Called(change, str(path))


class _Albumentation:
    def __init__(self, compose: "A.Compose", path: str) -> None:
        self.compose, self.path = compose, path

    def __call__(self, image: Pixels, seed: int) -> Pixels:
        self.compose.set_random_seed(seed)
        return _checked(self.compose(image=image)["image"], image, self.path)


class _Called:
    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor], path: str) -> None:
        self.change, self.path = change, path

    def __call__(self, image: Pixels, seed: int) -> Pixels:
        with _seeded(seed):
            changed = self.change(torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))))
        pixels = changed.numpy().transpose(1, 2, 0) if isinstance(changed, torch.Tensor) else changed
        return np.ascontiguousarray(_checked(pixels, image, self.path))


def _build(described: Mapping[str, Any]) -> Any:  # noqa: ANN401 (whatever a path names)
    """Build what is described, the innermost first."""
    if not isinstance(described.get("class_path"), str) or described.keys() - {"class_path", "init_args"}:
        raise CxlpError(f"data.augment.custom: give class_path and init_args, not {dict(described)}")
    path = described["class_path"]
    arguments = {key: _filled(value) for key, value in (described.get("init_args") or {}).items()}
    try:
        return import_object(path, "data.augment.custom")(**arguments)
    except (TypeError, ValueError) as error:
        raise CxlpError(f"data.augment.custom: {path} does not take these init_args: {error}") from error


def _filled(value: Any) -> Any:  # noqa: ANN401 (any value of a config)
    if isinstance(value, Mapping) and "class_path" in value:
        return _build(value)
    return [_filled(part) for part in value] if isinstance(value, list) else value


def _checked(changed: Any, image: Pixels, path: str) -> Pixels:  # noqa: ANN401 (whatever a change returns)
    if not isinstance(changed, np.ndarray) or changed.shape != image.shape or changed.dtype != np.uint8:
        kind = f"{changed.dtype} {changed.shape}" if isinstance(changed, np.ndarray) else type(changed).__name__
        raise CxlpError(
            f"data.augment.custom: {path} makes {kind} of a picture that is uint8 {image.shape}: both must stay"
        )
    return changed


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the generators of torch, NumPy and Python, and put them back in the end."""
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
