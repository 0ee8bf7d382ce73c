"""Changes of pictures by their import paths: transforms of albumentations or torchvision, or modules of one's own."""

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

#: Changes a picture ``(H, W, 3)``, uint8, by draws from a seed.
Change = Callable[[Pixels, int], Pixels]


def build_change(described: Mapping[str, Any], key: str, resizes: bool = False) -> Change:
    """Build a change, whose draws depend on the seed only that it is called with.

    Args:
        described: ``class_path`` and perhaps ``init_args``, which may hold further such descriptions. A transform of
            albumentations gets the picture as its ``image``; any other module is called with a tensor ``(3, H, W)``,
            uint8, as transforms of ``torchvision.transforms.v2`` are, and returns such a tensor.
        key: What it is given by, for errors.
        resizes: Whether it may make a picture of another size.

    Raises:
        CxlpError: If it cannot be imported, is none of these, or does not take the arguments.
    """
    import albumentations as A  # half a second, which a run without such changes can do without

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
        except Exception as error:  # whatever the change raises
            reason = " ".join(str(error).split()) or type(error).__name__
            raise CxlpError(f"{self.what} fails on a picture that is uint8 {image.shape}: {reason}") from error
        expected = (*changed.shape[:2], 3) if self.resizes and isinstance(changed, np.ndarray) else image.shape
        if not isinstance(changed, np.ndarray) or changed.shape != expected or changed.dtype != np.uint8:
            kind = f"{changed.dtype} {changed.shape}" if isinstance(changed, np.ndarray) else type(changed).__name__
            must = "it must be uint8, with 3 channels" if self.resizes else "both must stay"
            raise CxlpError(f"{self.what} makes {kind} of a picture that is uint8 {image.shape}: {must}")
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
    """Build what is described, the innermost first; nothing else is called, since a checkpoint may name it."""
    if not isinstance(described.get("class_path"), str) or described.keys() - {"class_path", "init_args"}:
        raise CxlpError(f"{key}: give class_path and init_args, not {dict(described)}")
    path = described["class_path"]
    import albumentations as A

    found = import_object(path, key)
    if not (isinstance(found, type) and issubclass(found, A.BasicTransform | A.BaseCompose | nn.Module)):
        raise CxlpError(f"{key}: {path} is neither a transform of albumentations nor an nn.Module")
    try:
        return found(**{name: _filled(value, key) for name, value in (described.get("init_args") or {}).items()})
    except (TypeError, ValueError) as error:
        raise CxlpError(f"{key}: {path} does not take these init_args: {error}") from error


def _filled(value: Any, key: str) -> Any:  # noqa: ANN401 (any value of a config)
    if isinstance(value, Mapping) and "class_path" in value:
        return _build(value, key)
    return [_filled(part, key) for part in value] if isinstance(value, list) else value


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
