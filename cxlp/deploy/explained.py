"""Explanations of images, shown as text in a terminal and as figures in a notebook."""

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any, SupportsIndex, overload

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cxlp.deploy.prediction import LINES, join_html
from cxlp.explain.attribution import Explanation
from cxlp.utils.files import write_whole
from cxlp.utils.spelling import percent

#: Maximum number of explanations of a list that a notebook shows.
SHOWN = 6


@dataclass(frozen=True, repr=False)
class Explained:
    """Explanation of an image's score, which a notebook shows as a figure.

    Attributes:
        path: The given path; empty if an image object was given.
        image: The network's input, ``(3, S, S)`` uint8.
        proportion: Height divided by width of the image, before it was made square.
        explanation: The decomposition of the score over places and pooling channels.
        classes: Names of the network's classes.
        channels: Number of pooling channels in the figure, those with the largest absolute shares.
    """

    path: str
    image: Tensor
    proportion: float
    explanation: Explanation
    classes: tuple[str, ...]
    channels: int = 8

    @property
    def target(self) -> str:
        """Name of the explained class."""
        return self.classes[self.explanation.target]

    @property
    def against(self) -> str | None:
        """Name of the class whose score is subtracted, or ``None``."""
        return None if self.explanation.against is None else self.classes[self.explanation.against]

    @property
    def probability(self) -> float:
        """Probability of the explained class."""
        return float(self.explanation.probabilities[self.explanation.target])

    @property
    def score(self) -> float:
        """The score, or the difference of two scores: bias plus evidence."""
        return self.explanation.score

    @property
    def strongest(self) -> list[int]:
        """Indices of the pooling channels with the largest absolute shares."""
        return self.explanation.strongest(self.channels)

    def map(self, pixels: int | None = None) -> NDArray[np.float64]:
        """Return the evidence over the square image, ``(pixels, pixels)``; default: the input size."""
        found: NDArray[np.float64] = self.explanation.map(pixels or self.image.shape[-1]).numpy()
        return found

    @cached_property
    def _png(self) -> bytes:
        from cxlp.reports.overlays import draw_explanation  # matplotlib takes a second to import

        return draw_explanation(self.image, self.proportion, self.explanation, self.strongest, self.classes)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the figure as a PNG file."""
        write_whole(Path(path), self._png)

    def __repr__(self) -> str:
        return f"Explained({self.path!r}: {self._summary()})"

    def _summary(self) -> str:
        over = "" if self.against is None else f" rather than {self.against}"
        evidence = f"{self.explanation.evidence:+.3f}, bias {self.explanation.bias:+.3f}"
        shares = self.explanation.channels
        channels = ", ".join(f"{k} {float(shares[k]):+.3f}" for k in self.strongest[:3])
        score = f"score {self.score:+.3f} = evidence {evidence}"
        return f"{self.target} {percent(self.probability)}{over}, {score}; strongest channels {channels}"

    def _repr_png_(self) -> bytes:
        return self._png


class Explanations(list[Explained]):
    """List of explanations in the order of the images, shown as lines or, in a notebook, as figures."""

    @overload
    def __getitem__(self, place: SupportsIndex) -> Explained: ...
    @overload
    def __getitem__(self, place: slice) -> "Explanations": ...
    def __getitem__(self, place: Any) -> Any:
        """Return one explanation, or a slice as :class:`Explanations`."""
        found = super().__getitem__(place)
        return Explanations(found) if isinstance(place, slice) else found

    def __repr__(self) -> str:
        shown: Sequence[Explained] = self[:LINES]
        more = [f"  ... {len(self) - LINES:,} more"] if len(self) > LINES else []
        return "\n".join(
            [f"{len(self):,} explanations", *(f"  {each.path}  {each._summary()}" for each in shown), *more]
        )

    def _repr_html_(self) -> str:
        parts = []
        for each in self[:SHOWN]:
            data = base64.b64encode(each._png).decode()
            picture = f'<img style="max-width: 100%" src="data:image/png;base64,{data}">'
            parts.append(f"<div>{escape(each.path)}</div>{picture}")
        return join_html(parts, len(self))
