"""Drawing with Pillow in part coordinates: frames, smooth curves, colours, and a canvas with relief.

A part is described by points in *body lengths* and mapped to pixels by a `Frame`.
"""

import colorsys
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

Array = NDArray[np.float64]
Colour = tuple[int, int, int]

SUPERSAMPLE = 2  # bird and perch are drawn larger by this factor and then reduced, for smooth outlines


class Frame(NamedTuple):
    """An affine map from part coordinates (body lengths) to pixels."""

    matrix: Array
    origin: Array

    def map(self, points: ArrayLike) -> Array:
        """Convert points (n, 2) from body lengths to pixels, (n, 2)."""
        return np.asarray(points, dtype=np.float64) @ self.matrix.T + self.origin

    def child(self, origin: tuple[float, float], angle: float, stretch: ArrayLike = 1.0) -> "Frame":
        """Return the frame of a part at `origin`, rotated by `angle` (radians) and stretched along x, y."""
        cos, sin = np.cos(angle), np.sin(angle)
        turn = np.array([[cos, -sin], [sin, cos]]) * np.asarray(stretch)
        return Frame(self.matrix @ turn, self.map([origin])[0])

    @property
    def unit(self) -> float:
        """Pixels per body length."""
        return float(np.sqrt(abs(np.linalg.det(self.matrix))))


@cache
def spline(count: int, steps: int) -> Array:
    """Return the matrix (count * steps, count) of a closed Catmull-Rom spline."""
    t = (np.arange(steps) / steps)[:, None]
    corner = np.eye(count)[:, None]
    before, after, next_but_one = (np.roll(corner, k, axis=0) for k in (1, -1, -2))
    cubic = (3 * (corner - after) + next_but_one - before) * t**3
    square = (2 * before - 5 * corner + 4 * after - next_but_one) * t**2
    matrix: Array = 0.5 * (cubic + square + (after - before) * t + 2 * corner)
    return matrix.reshape(-1, count)


def curve(points: ArrayLike, steps: int = 6) -> Array:
    """Return a smooth closed curve through points, (n, 2) -> (n * steps, 2)."""
    corners = np.asarray(points, dtype=np.float64)
    return spline(len(corners), steps) @ corners


def flat(points: Array) -> list[float]:
    """Return the points in Pillow's order: x, y, x, y, ..."""
    coordinates: list[float] = points.ravel().tolist()
    return coordinates


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """Return an RGB colour, 0 to 255, from hue, saturation and value in 0 to 1 (the hue wraps)."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def vary(colour: Colour, change: float | Array) -> Colour:
    """Add `change` (one number, or one per channel) to a colour and clip it."""
    shifts = change.tolist() if isinstance(change, np.ndarray) else (change,) * 3
    red, green, blue = (min(255, max(0, int(c + d))) for c, d in zip(colour, shifts, strict=True))
    return red, green, blue


def stencil(shapes: list[Array], extent: Array, level: int) -> Image.Image:
    """Return a mask (mode L) of width and height `extent`, with polygons at `level` on black."""
    width, height = extent.tolist()
    mask = Image.new("L", (width, height))
    draw = ImageDraw.Draw(mask)
    for shape in shapes:
        draw.polygon(flat(shape), fill=level)
    return mask


class Canvas:
    """The layer on which the bird is painted (RGBA, transparent) and its relief (L, 128 is flat)."""

    def __init__(self, side: int, palette: dict[str, Colour], unit: float) -> None:
        self.palette = palette
        self.layer = Image.new("RGBA", (side, side), (*palette["back"], 0))
        self.draw = ImageDraw.Draw(self.layer)
        self.relief = Image.new("L", (side, side), 128)
        self.engrave = ImageDraw.Draw(self.relief)
        self.unit = unit

    def fill(self, frame: Frame, outline: ArrayLike, colour: Colour) -> None:
        """Fill the curve through points given in part coordinates."""
        self.draw.polygon(flat(frame.map(curve(outline))), fill=colour)

    def stain(
        self,
        shapes: list[Array],
        colour: str,
        soft: float = 0.008,
        within: list[Array] | None = None,
        opacity: float = 0.92,
    ) -> None:
        """Colour the plumage inside polygons (pixels), never outside the bird.

        Args:
            shapes: Polygons, each (n, 2) pixels.
            colour: Name in the palette.
            soft: Width of the soft edge in body lengths.
            within: Polygons to which the colour is restricted; by default the whole bird.
            opacity: 0 to 1.
        """
        margin = 1 + 2 * soft * self.unit
        every = np.concatenate(shapes)
        low = np.maximum(every.min(axis=0) - margin, 0).astype(int)
        high = np.minimum(every.max(axis=0) + margin, self.layer.width).astype(int)
        if (low >= high).any():  # outside the picture
            return
        mask = stencil([shape - low for shape in shapes], high - low, round(255 * opacity))
        if within is not None:
            inside = stencil([shape - low for shape in within], high - low, 255)
            mask = ImageChops.multiply(mask, inside)
        mask = mask.filter(ImageFilter.BoxBlur(soft * self.unit))
        (left, upper), (right, lower) = low.tolist(), high.tolist()
        box = (left, upper, right, lower)
        mask = ImageChops.multiply(mask, self.layer.crop(box).getchannel("A"))
        self.layer.paste(self.palette[colour], box, mask)

    def crease(self, line: Array, lightness: float) -> None:
        """Draw a line, (n, 2) pixels, into the relief: negative is darker, positive lighter."""
        width = max(1, round(0.012 * self.unit))
        self.engrave.line(flat(line), fill=round(128 + lightness), width=width)

    def finish(self, light: Array) -> Image.Image:
        """Reduce the layer to its final size and shade it as a rounded body under `light`."""
        layer = self.layer.reduce(SUPERSAMPLE)
        radius = 0.1 * self.unit / SUPERSAMPLE
        alpha = layer.getchannel("A")
        height = np.asarray(alpha.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32) / 255
        slope_y, slope_x = np.gradient(height)
        across, down = (radius * light).tolist()
        shade = 1 + across * slope_x + down * slope_y
        shade *= np.asarray(self.relief.reduce(SUPERSAMPLE), dtype=np.float32) / 128
        pixels = np.asarray(layer.convert("RGB"), dtype=np.float32) * shade[..., None]
        shaded = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        shaded.putalpha(alpha)
        return shaded
