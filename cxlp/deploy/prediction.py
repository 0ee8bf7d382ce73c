"""Predictions for images, shown as text in a terminal and with the images in a notebook."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, SupportsIndex, overload

from PIL import Image

from cxlp.deploy.pictures import Picture, pixels_of
from cxlp.utils.errors import CxlpError
from cxlp.utils.spelling import percent

#: Maximum number of images of a list that are shown, as lines and as images.
LINES, SHOWN = 20, 24
#: Longer side of an image in a notebook, in pixels.
THUMBNAIL = 160


@dataclass(frozen=True, repr=False)
class Prediction:
    """Prediction for one image, which a notebook shows with the image.

    Attributes:
        path: The given path; empty if an image object was given.
        classes: Names of the most probable classes, in descending order; empty if the file could not be read.
        probabilities: Probabilities of these classes. With a single label per image, they are values of a softmax,
            which sums to 1 over all classes. With several labels, each class has a separate sigmoid.
        error: Why the file could not be read; empty if it could.
        image: The given image.
    """

    path: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str = ""
    image: Picture | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        return f"Prediction({self.path!r}: {self._summary()})"

    def _summary(self, most: int | None = None) -> str:
        pairs = list(zip(self.classes, self.probabilities, strict=True))[:most]
        return self.error or ", ".join(f"{name} {percent(probability)}" for name, probability in pairs)

    def _repr_html_(self) -> str:
        said = [
            f"<div>{'<b>' * (k == 0)}{escape(name)}{'</b>' * (k == 0)} {percent(probability)}</div>"
            for k, (name, probability) in enumerate(zip(self.classes, self.probabilities, strict=True))
        ]
        about = "".join(said) or f"<div>{escape(self.error)}</div>"
        name = f'<div style="color: gray; font-size: smaller">{escape(self.path)}</div>' if self.path else ""
        return (
            '<div style="display: inline-block; vertical-align: top; margin: 4px; text-align: left; '
            f'max-width: {THUMBNAIL + 20}px; overflow-wrap: anywhere">{self._thumbnail()}{about}{name}</div>'
        )

    def _thumbnail(self) -> str:
        if self.image is None:
            return ""
        try:
            picture = Image.fromarray(pixels_of(self.image, THUMBNAIL))
        except CxlpError:  # the file was deleted in the meantime, or `error` says why it is unreadable
            return ""
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=85)
        return f'<img src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}">'


class Predictions(list[Prediction]):
    """List of predictions in the order of the images, shown as lines or, in a notebook, as images."""

    @overload
    def __getitem__(self, place: SupportsIndex) -> Prediction: ...
    @overload
    def __getitem__(self, place: slice) -> "Predictions": ...
    def __getitem__(self, place: Any) -> Any:
        """Return one prediction, or a slice as :class:`Predictions`."""
        found = super().__getitem__(place)
        return Predictions(found) if isinstance(place, slice) else found

    def __repr__(self) -> str:
        shown: Sequence[Prediction] = self[:LINES]
        width = max((len(each.path) for each in shown), default=0)
        lines = [f"  {each.path:{width}}  {each._summary(3)}" for each in shown]
        more = [f"  ... {len(self) - LINES:,} more"] if len(self) > LINES else []
        return "\n".join([f"{len(self):,} predictions", *lines, *more])

    def _repr_html_(self) -> str:
        return join_html([each._repr_html_() for each in self[:SHOWN]], len(self))


def join_html(parts: Iterable[str], total: int) -> str:
    """Join HTML parts side by side, followed by the number of parts that are not shown."""
    parts = list(parts)
    more = f"<div>... {total - len(parts):,} more</div>" if total > len(parts) else ""
    return f"<div>{''.join(parts)}</div>{more}"
