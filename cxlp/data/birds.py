"""Small pictures of invented birds: a fine-grained data set that needs no download.

The ten species share one body plan and one palette. They differ only in the choice of five small
parts (beak, crown, wing bars, tail, breast), and no single part gives a species away: a recogniser
has to find the parts and read their *combination*. Pose, size, plumage colour, light, background
and foliage in front vary from picture to picture, whatever the species.

Geometry: a part is described by points in *body lengths* (x towards the beak, y downwards) and
mapped to pixels by a `Frame`. No random number depends on the species: under one seed, two species
differ in the pixels of their parts and nowhere else.
"""

import colorsys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

Array = NDArray[np.float64]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Species:
    """A species: a name and one choice for each of the five parts that vary."""

    name: str
    beak: Literal["cone", "needle", "hook"]
    crown: Literal["plain", "cap", "crest", "stripe"]
    wing_bars: Literal[0, 1, 2]
    tail: Literal["short", "long", "forked"]
    breast: Literal["plain", "spots", "streaks", "band"]


# Every choice occurs in at least two species; any two species differ in two to four parts.
SPECIES: tuple[Species, ...] = (
    Species("belted needlebill", "needle", "plain", 2, "short", "band"),
    Species("masked dartbill", "needle", "stripe", 1, "short", "plain"),
    Species("hook-billed thicketwren", "hook", "crest", 1, "short", "plain"),
    Species("fork-tailed shrikelet", "hook", "plain", 1, "forked", "spots"),
    Species("capped pebblefinch", "cone", "cap", 0, "short", "spots"),
    Species("double-barred swiftfinch", "cone", "cap", 2, "forked", "plain"),
    Species("crested streakling", "cone", "crest", 1, "short", "streaks"),
    Species("plain hedgefinch", "cone", "plain", 0, "short", "plain"),
    Species("long-tailed brackenfinch", "cone", "plain", 1, "long", "streaks"),
    Species("banded browfinch", "cone", "stripe", 1, "long", "band"),
)

# Outlines are control points of closed curves.
# fmt: off
TORSO = [(-0.54, 0.0), (-0.3, -0.14), (0.0, -0.24), (0.24, -0.3), (0.42, -0.22), (0.48, -0.02),
         (0.41, 0.16), (0.2, 0.27), (-0.06, 0.27), (-0.32, 0.17), (-0.52, 0.08)]
NECK = [(0.1, -0.26), (0.24, -0.42), (0.44, -0.4), (0.54, -0.2), (0.46, 0.05), (0.2, 0.0)]
BELLY = [(0.6, -0.3), (0.38, -0.18), (0.24, 0.02), (-0.1, 0.1), (-0.6, 0.05), (-0.5, 0.3), (0.1, 0.4),
         (0.55, 0.2)]
WING = [(0.32, -0.12), (0.2, -0.2), (-0.02, -0.19), (-0.3, -0.09), (-0.6, 0.05), (-0.32, 0.09), (0.0, 0.12),
        (0.24, 0.06)]
WING_BAR = [(0.02, -0.24), (0.07, -0.24), (0.03, -0.05), (0.05, 0.14), (0.0, 0.14), (-0.02, -0.05)]
BAND = [(0.14, -0.14), (0.4, -0.04), (0.64, 0.07), (0.62, 0.17), (0.36, 0.05), (0.12, -0.05)]
HEAD = [(-0.18, 0.02), (-0.13, -0.12), (0.0, -0.19), (0.12, -0.145), (0.185, -0.03), (0.14, 0.1),
        (0.0, 0.17), (-0.14, 0.15)]
THROAT = [(0.22, 0.04), (0.08, 0.05), (-0.02, 0.11), (0.0, 0.3), (0.25, 0.2)]
CHEEK = [(0.06, 0.0), (-0.03, -0.04), (-0.12, 0.0), (-0.08, 0.08), (0.02, 0.08)]
CAP = [(0.19, -0.05), (0.07, -0.085), (-0.06, -0.07), (-0.2, 0.03), (-0.26, -0.14), (0.0, -0.3), (0.2, -0.2)]
CREST = [(0.1, -0.12), (0.04, -0.21), (-0.08, -0.26), (-0.23, -0.28), (-0.19, -0.17), (-0.16, 0.0)]
EYE_STRIPE = [(0.18, -0.03), (0.06, -0.08), (-0.1, -0.07), (-0.2, -0.01), (-0.1, 0.0), (0.06, -0.02)]
BROW = [(0.17, -0.065), (0.05, -0.115), (-0.1, -0.1), (-0.18, -0.05), (-0.1, -0.07), (0.06, -0.085)]
BEAKS = {  # upper, then lower mandible
    "cone": ([(0.13, -0.09), (0.24, -0.06), (0.33, 0.01), (0.14, 0.015)],
             [(0.14, 0.0), (0.31, 0.015), (0.23, 0.06), (0.13, 0.07)]),
    "needle": ([(0.14, -0.05), (0.3, -0.02), (0.47, 0.05), (0.3, 0.02), (0.15, 0.02)],
               [(0.14, 0.0), (0.3, 0.02), (0.44, 0.045), (0.3, 0.04), (0.14, 0.045)]),
    "hook": ([(0.13, -0.08), (0.27, -0.08), (0.37, -0.02), (0.365, 0.09), (0.325, 0.025), (0.15, 0.02)],
             [(0.14, 0.0), (0.32, 0.02), (0.24, 0.055), (0.13, 0.06)]),
}
TAILS = {
    "short": [(0.1, -0.05), (-0.16, -0.06), (-0.28, -0.06), (-0.3, 0.0), (-0.27, 0.06), (-0.16, 0.06),
              (0.1, 0.05)],
    "long": [(0.1, -0.05), (-0.3, -0.055), (-0.62, -0.075), (-0.68, 0.0), (-0.62, 0.07), (-0.3, 0.055),
             (0.1, 0.05)],
    "forked": [(0.1, -0.05), (-0.25, -0.07), (-0.52, -0.16), (-0.42, -0.05), (-0.3, 0.0), (-0.42, 0.05),
               (-0.52, 0.16), (-0.25, 0.07), (0.1, 0.05)],
}
# fmt: on
HIP = (-0.02, 0.2)  # where the legs leave the body

# Backgrounds: colour at the top, colour at the bottom, colour of the leaves.
HABITATS: tuple[tuple[Colour, Colour, Colour], ...] = (
    ((150, 190, 120), (62, 92, 48), (84, 126, 52)),  # wood
    ((176, 204, 226), (120, 142, 96), (96, 122, 66)),  # open country
    ((206, 200, 182), (138, 122, 92), (150, 118, 62)),  # reeds
    ((84, 106, 92), (52, 66, 46), (76, 108, 66)),  # deep shade
    ((222, 186, 136), (130, 92, 58), (172, 96, 44)),  # autumn
    ((196, 206, 210), (128, 140, 144), (110, 124, 112)),  # mist
)
SUPERSAMPLE = 2  # bird and perch are drawn this much larger, then reduced: smooth outlines


class Frame(NamedTuple):
    """An affine map from part coordinates (body lengths) to pixels."""

    matrix: Array
    origin: Array

    def map(self, points: ArrayLike) -> Array:
        """Maps points, shape (n, 2) in body lengths, to pixels of the same shape."""
        return np.asarray(points, dtype=np.float64) @ self.matrix.T + self.origin

    def child(self, origin: tuple[float, float], angle: float, stretch: ArrayLike = 1.0) -> "Frame":
        """Hangs a part at `origin`, turned by `angle` (radians) and stretched along x, y."""
        cos, sin = np.cos(angle), np.sin(angle)
        turn = np.array([[cos, -sin], [sin, cos]]) * np.asarray(stretch)
        return Frame(self.matrix @ turn, self.map([origin])[0])

    @property
    def unit(self) -> float:
        """Pixels per body length."""
        return float(np.sqrt(abs(np.linalg.det(self.matrix))))


@dataclass(frozen=True)
class Individual:
    """All that varies between two birds of one species, and how this one sits."""

    width: float  # from beak to tail, as a fraction of the image side
    centre: Array  # (2,), fraction of the image side
    facing: float  # 1: right, -1: left
    looking: float  # 1: ahead, -1: over its shoulder
    pitch: float  # radians, body axis above the horizon
    tilt: float  # radians, head
    tail_angle: float  # radians, against the body axis
    sizes: Array  # (7, 2), stretch of each part around 1
    marks: Array  # (9, 6, 3), jitter of the marks on the breast
    barbs: Array  # (150, 4), place, length and lightness of the feather strokes
    cheek: float  # opacity of the patch behind the eye
    light: Array  # (2,), direction of the light
    palette: dict[str, Colour]


@cache
def spline(count: int, steps: int) -> Array:
    """The matrix, (count * steps, count), that rounds a closed polygon (Catmull-Rom)."""
    t = (np.arange(steps) / steps)[:, None]
    corner = np.eye(count)[:, None]
    before, after, next_but_one = (np.roll(corner, k, axis=0) for k in (1, -1, -2))
    cubic = (3 * (corner - after) + next_but_one - before) * t**3
    square = (2 * before - 5 * corner + 4 * after - next_but_one) * t**2
    matrix: Array = 0.5 * (cubic + square + (after - before) * t + 2 * corner)
    return matrix.reshape(-1, count)


def curve(points: ArrayLike, steps: int = 6) -> Array:
    """The smooth closed curve through points, (n, 2) -> (n * steps, 2)."""
    corners = np.asarray(points, dtype=np.float64)
    return spline(len(corners), steps) @ corners


def flat(points: Array) -> list[float]:
    """The points as Pillow wants them: x, y, x, y, ..."""
    coordinates: list[float] = points.ravel().tolist()
    return coordinates


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """An RGB colour, 0 to 255, from hue, saturation and value in 0 to 1 (the hue wraps)."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def vary(colour: Colour, change: float | Array) -> Colour:
    """Adds `change` (one number, or one per channel) to a colour and clips it."""
    shifts = change.tolist() if isinstance(change, np.ndarray) else (change,) * 3
    red, green, blue = (min(255, max(0, int(c + d))) for c, d in zip(colour, shifts, strict=True))
    return red, green, blue


def sample_individual(rng: np.random.Generator) -> Individual:
    """Draws a bird's build, pose and plumage; nothing here knows the species."""
    hue, saturation, value = rng.uniform(0, 1), rng.uniform(0.12, 0.45), rng.uniform(0.42, 0.62)
    warm = rng.uniform(0.03, 0.17)
    palette = {
        "back": hsv(hue, saturation, value),
        "wing": hsv(hue + rng.normal(0, 0.03), saturation, value * rng.uniform(0.55, 0.75)),
        "belly": hsv(warm, rng.uniform(0.05, 0.4), rng.uniform(0.78, 0.95)),
        "dark": hsv(hue, 0.35, rng.uniform(0.1, 0.27)),
        "pale": hsv(warm, rng.uniform(0.02, 0.2), rng.uniform(0.76, 0.98)),
        "beak": hsv(rng.uniform(0.03, 0.13), rng.uniform(0.1, 0.6), rng.uniform(0.2, 0.6)),
        "leg": hsv(rng.uniform(0.0, 0.1), rng.uniform(0.2, 0.5), rng.uniform(0.25, 0.6)),
    }
    sun = rng.uniform(-0.9, 0.9)
    return Individual(
        width=rng.uniform(0.37, 0.75),
        centre=np.array([rng.uniform(0.4, 0.6), rng.uniform(0.38, 0.58)]),
        facing=rng.choice([-1.0, 1.0]),
        looking=rng.choice([-1.0, 1.0], p=[0.12, 0.88]),
        pitch=rng.uniform(0.0, 0.75),
        tilt=rng.normal(0.05, 0.16),
        tail_angle=rng.uniform(-0.45, 0.2),
        sizes=rng.normal(1.0, 0.08, size=(7, 2)),
        marks=rng.uniform(-1, 1, size=(9, 6, 3)),
        barbs=rng.uniform(-1, 1, size=(150, 4)),
        cheek=rng.uniform(0, 0.6),
        light=np.array([np.sin(sun), np.cos(sun)]),
        palette=palette,
    )


def leaf(rng: np.random.Generator, place: Array, length: float) -> Array:
    """The outline of a leaf, (n, 2) pixels, from its stalk at `place`, in a random direction."""
    outline = [(0.0, 0.0), (0.3, 0.2), (0.7, 0.17), (1.0, 0.0), (0.7, -0.16), (0.3, -0.2)]
    stretch = (length, length * rng.uniform(0.6, 1.3))
    frame = Frame(np.eye(2), place).child((0, 0), rng.uniform(0, 2 * np.pi), stretch)
    return frame.map(outline)


def twig(rng: np.random.Generator) -> Array:
    """A gently bent line, (9, 2), across a picture 128 pixels wide."""
    ends, bend = rng.uniform(-20, 148, size=(2, 2)), rng.normal(0, 14, 2)
    t = np.linspace(0, 1, 9)[:, None]
    line: Array = (1 - t) * ends[0] + t * ends[1] + 4 * t * (1 - t) * bend
    return line


def paint_background(rng: np.random.Generator, size: int, perch: Array, unit: float) -> Image.Image:
    """Paints what is behind the bird, out of focus, and its perch, in focus.

    Args:
        rng: Source of the random numbers.
        size: Side of the picture in pixels.
        perch: (2,), pixel at which the bird stands.
        unit: Pixels per body length of the bird.

    Returns:
        An RGB picture, size x size.
    """
    top, bottom, green = HABITATS[rng.integers(len(HABITATS))]
    mix = np.linspace(0, 1, 64)[:, None, None]
    sky = np.broadcast_to((1 - mix) * top + mix * bottom, (64, 64, 3)).astype(np.uint8)
    far = Image.fromarray(sky)
    draw = ImageDraw.Draw(far)
    for x, y, radius in rng.uniform((-4, 0, 2), (68, 68, 11), size=(36, 3)).tolist():
        base = (top, bottom, green)[rng.integers(3)]
        draw.circle((x, y), radius, fill=vary(base, rng.normal(0, 16) + rng.normal(0, 7, 3)))
    far = far.filter(ImageFilter.GaussianBlur(rng.uniform(1.2, 2.6))).resize((128, 128))

    draw = ImageDraw.Draw(far, "RGBA")
    for x, y, radius in rng.uniform((0, 0, 3), (128, 128, 10), size=(rng.integers(14), 3)).tolist():
        draw.circle((x, y), radius, fill=(*vary(top, rng.uniform(10, 60)), 70))  # bokeh
    wood = vary((96, 78, 60), rng.normal(0, 14) + rng.normal(0, 5, 3))
    for _ in range(rng.integers(1, 5)):
        draw.line(flat(twig(rng)), fill=vary(wood, 20), width=int(rng.integers(1, 5)))
    for place in rng.uniform(0, 128, size=(rng.integers(10, 36), 2)):
        fill = vary(green, rng.normal(0, 24) + rng.normal(0, 8, 3))
        draw.polygon(flat(leaf(rng, place, rng.uniform(8, 22))), fill=fill)
    far = far.filter(ImageFilter.GaussianBlur(rng.uniform(0.6, 2.2)))

    near = far.resize((SUPERSAMPLE * size,) * 2, Image.Resampling.BILINEAR)
    perch, unit = SUPERSAMPLE * perch, SUPERSAMPLE * unit
    if rng.random() < 0.72:
        paint_branch(rng, near, perch, unit, wood)
    else:
        paint_ground(rng, near, perch, unit, vary(bottom, -15), green)
    return near.reduce(SUPERSAMPLE)


def paint_branch(rng: np.random.Generator, picture: Image.Image, perch: Array, unit: float, wood: Colour) -> None:
    """Paints a bent branch through the pixel `perch`: lit from above, with streaks of bark."""
    draw = ImageDraw.Draw(picture)
    along = np.linspace(-1, 1, 25) * picture.width
    bend = rng.uniform(-0.35, 0.35) * along + rng.normal(0, 0.06) * along**2 / picture.width
    axis = perch + np.stack([along, bend], axis=1)
    axis[:, 1] += rng.normal(0, 0.006 * unit, 25)
    thick = rng.uniform(0.1, 0.22) * unit * np.linspace(rng.uniform(0.6, 1.2), rng.uniform(0.6, 1.2), 25)
    for depth, shade in ((0.0, 8), (0.06, 30), (0.3, 10), (0.55, -14), (0.8, -34)):
        upper, lower = axis.copy(), axis[::-1].copy()
        upper[:, 1] += depth * thick
        lower[:, 1] += thick[::-1]
        draw.polygon(flat(np.concatenate([upper, lower])), fill=vary(wood, shade))
    for place, depth, shade in rng.uniform((0, 0.1, -22), (23, 0.9, 12), size=(40, 3)).tolist():
        streak = axis[int(place) : int(place) + 2] + [0, depth * thick[int(place)]]
        draw.line(flat(streak), fill=vary(wood, shade - 30 * depth), width=max(1, int(unit * 0.01)))


def paint_ground(
    rng: np.random.Generator, picture: Image.Image, perch: Array, unit: float, soil: Colour, green: Colour
) -> None:
    """Paints grassy ground: small blades far off (at the height of `perch`), large ones near."""
    draw = ImageDraw.Draw(picture)
    top, bottom = float(perch[1]) - 0.1 * unit, picture.height
    for step in np.linspace(0, 1, 12).tolist():
        line = top + step * (bottom - top)
        draw.rectangle((0, line, picture.width, bottom), fill=vary(soil, 12 - 40 * step))
    distance = np.sort(rng.uniform(0, 1, 300)) ** 1.5
    roots = np.stack([rng.uniform(0, picture.width, 300), top + distance * (bottom - top)], 1)
    tall = unit * (0.08 + 0.3 * distance * rng.uniform(0.4, 1, 300))
    tips = roots + np.stack([tall * rng.normal(0, 0.4, 300), -tall], 1)
    blades = np.stack([roots, tips, roots + np.stack([0.13 * tall, 0 * tall], 1)], 1)
    shades = rng.normal(-6, 18, 300) - 14 * distance
    for blade, shade in zip(blades, shades.tolist(), strict=True):
        draw.polygon(flat(blade), fill=vary(green, shade))


def paint_foreground(rng: np.random.Generator, size: int) -> Image.Image:
    """Paints the leaves, twigs and grass between bird and camera: RGBA, size x size."""
    green = vary(HABITATS[rng.integers(len(HABITATS))][2], rng.normal(0, 15))
    layer = Image.new("RGBA", (128, 128), (*green, 0))
    draw = ImageDraw.Draw(layer)
    for place in rng.uniform(0, 128, size=(rng.integers(0, 8), 2)):
        fill = vary(green, rng.normal(0, 20))
        draw.polygon(flat(curve(leaf(rng, place, rng.uniform(10, 22)))), fill=fill)
    for root in rng.uniform(0, 128, size=(rng.integers(0, 9),)).tolist():
        tip = (root + rng.normal(0, 14), rng.uniform(70, 118))
        draw.polygon(((root - 2, 129), (root + 2, 129), tip), fill=vary(green, rng.normal(0, 20)))
    for _ in range(rng.integers(0, 2)):
        draw.line(flat(twig(rng)), fill=(84, 70, 56), width=2)
    layer = layer.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.6)))
    return layer.resize((size, size), Image.Resampling.BILINEAR)


def stencil(shapes: list[Array], extent: Array, level: int) -> Image.Image:
    """A picture, mode L, of width and height `extent`, with polygons at `level` on black."""
    width, height = extent.tolist()
    mask = Image.new("L", (width, height))
    draw = ImageDraw.Draw(mask)
    for shape in shapes:
        draw.polygon(flat(shape), fill=level)
    return mask


class Canvas:
    """The layer the bird is painted on (RGBA, transparent) and its relief (L, 128 is flat)."""

    def __init__(self, side: int, bird: Individual, unit: float) -> None:
        self.palette = bird.palette
        self.layer = Image.new("RGBA", (side, side), (*bird.palette["back"], 0))
        self.draw = ImageDraw.Draw(self.layer)
        self.relief = Image.new("L", (side, side), 128)
        self.engrave = ImageDraw.Draw(self.relief)
        self.unit = unit

    def fill(self, frame: Frame, outline: ArrayLike, colour: Colour) -> None:
        """Fills the curve through points given in part coordinates."""
        self.draw.polygon(flat(frame.map(curve(outline))), fill=colour)

    def stain(
        self,
        shapes: list[Array],
        colour: str,
        soft: float = 0.008,
        within: list[Array] | None = None,
        opacity: float = 0.92,
    ) -> None:
        """Colours the plumage inside polygons (pixels), never outside the bird.

        Args:
            shapes: Polygons, each (n, 2) pixels.
            colour: Name in the palette.
            soft: Width of the soft edge in body lengths.
            within: Polygons outside which nothing is coloured; by default the whole bird.
            opacity: 0 to 1.
        """
        margin = 1 + 2 * soft * self.unit
        every = np.concatenate(shapes)
        low = np.maximum(every.min(axis=0) - margin, 0).astype(int)
        high = np.minimum(every.max(axis=0) + margin, self.layer.width).astype(int)
        if (low >= high).any():  # off the picture
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
        """Draws a line, (n, 2) pixels, into the relief: negative is darker, positive lighter."""
        width = max(1, round(0.012 * self.unit))
        self.engrave.line(flat(line), fill=round(128 + lightness), width=width)

    def finish(self, light: Array) -> Image.Image:
        """Reduces the layer to its final size and shades it as a rounded body under `light`."""
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


def draw_tail(canvas: Canvas, body: Frame, bird: Individual, species: Species) -> None:
    """The tail, hinged at the rump, with a dark line down the middle feathers."""
    tail = body.child((-0.46, 0.02), bird.tail_angle, bird.sizes[0])
    canvas.fill(tail, TAILS[species.tail], bird.palette["wing"])
    for y in (-0.02, 0.02):
        canvas.crease(tail.map([(0.0, y), (-0.28, y)]), -40)


def draw_legs(canvas: Canvas, hip: Frame, bird: Individual) -> None:
    """Two legs with three toes each, from the hip straight down to the perch."""
    width = max(1, round(0.028 * canvas.unit))
    for x in (-0.07, 0.07):
        for path in (
            [(x, 0.05), (x + 0.02, 0.24)],
            [(x - 0.05, 0.27), (x + 0.02, 0.24)],
            [(x + 0.02, 0.24), (x + 0.1, 0.26)],
            [(x + 0.02, 0.24), (x + 0.07, 0.29)],
        ):
            canvas.draw.line(flat(hip.map(path)), fill=bird.palette["leg"], width=width)


def draw_torso(canvas: Canvas, body: Frame, head: Frame, bird: Individual) -> None:
    """Torso, neck and head in the colour of the back, with a pale belly and throat."""
    canvas.fill(body, NECK, bird.palette["back"])
    canvas.fill(body, TORSO, bird.palette["back"])
    canvas.fill(head, HEAD, bird.palette["back"])
    canvas.stain([body.map(curve(BELLY)), head.map(curve(THROAT))], "belly", soft=0.035)


def draw_breast(canvas: Canvas, body: Frame, bird: Individual, species: Species) -> None:
    """The dark pattern on the breast: nothing, round spots, long streaks or one band."""
    belly = [body.map(curve(BELLY))]
    if species.breast == "band":
        canvas.stain([body.child((0, 0), 0, bird.sizes[1]).map(curve(BAND))], "dark")
    elif species.breast != "plain":
        grid = np.stack(np.meshgrid(np.linspace(-0.22, 0.46, 9), np.linspace(-0.16, 0.26, 6)), -1)
        centres = grid.transpose(1, 0, 2) + bird.marks[..., :2] * (0.03, 0.025)
        radii = {"spots": (0.023, 0.023), "streaks": (0.042, 0.01)}[species.breast]
        turn = np.linspace(0, 2 * np.pi, 9)[:-1]
        rim = np.stack([np.cos(turn), np.sin(turn)], -1) * radii
        growth = np.clip(1 + 0.6 * bird.marks[..., 2:, None], 0.75, 1.3)
        shapes = body.map(centres[:, :, None] + rim * growth)
        canvas.stain(list(shapes.reshape(-1, 8, 2)), "dark", within=belly)


def draw_wing(canvas: Canvas, body: Frame, bird: Individual, species: Species) -> None:
    """The folded wing, its shadow, its feathers, and the pale bars across it."""
    wing = body.child((0, 0), 0, bird.sizes[2])
    outline = wing.map(curve(WING))
    canvas.stain([outline + [0, 0.03 * canvas.unit]], "dark", soft=0.03, opacity=0.45)
    canvas.fill(wing, WING, bird.palette["wing"])
    for y in np.linspace(-0.13, 0.09, 6).tolist():
        edge = wing.map([(-0.05, y), (-0.35, 0.4 * y + 0.02), (-0.55, 0.05)])
        canvas.crease(edge, -45)
        canvas.crease(edge + [0, 0.016 * canvas.unit], 30)
    for x in {0: (), 1: (-0.05,), 2: (0.04, -0.16)}[species.wing_bars]:
        bar = wing.child((x, 0), 0, (bird.sizes[3, 0], 1)).map(curve(WING_BAR))
        canvas.stain([bar], "pale", within=[outline])


def draw_crown(canvas: Canvas, head: Frame, species: Species) -> None:
    """The crown: plain, a dark cap, or a dark stripe through the eye under a pale brow."""
    inside = [head.map(curve(HEAD))]
    if species.crown == "cap":
        canvas.stain([head.map(curve(CAP))], "dark", within=inside)
    elif species.crown == "stripe":
        canvas.stain([head.map(curve(EYE_STRIPE))], "dark", within=inside)
        canvas.stain([head.map(curve(BROW))], "pale", within=inside)


def draw_face(canvas: Canvas, head: Frame, bird: Individual, species: Species) -> None:
    """Beak and eye."""
    beak = head.child((0, 0), 0, bird.sizes[4])
    for mandible, shade in zip(reversed(BEAKS[species.beak]), (-25, 0), strict=True):
        canvas.fill(beak, mandible, vary(bird.palette["beak"], shade))
    rim = [(0.0, -1.0), (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0)]
    eye = head.child((0.065, -0.045), 0, bird.sizes[5] * 0.036)
    canvas.fill(eye, np.multiply(rim, 1.35), bird.palette["back"])
    canvas.fill(eye, rim, (18, 14, 12))
    glint = Frame(0.33 * eye.matrix, eye.origin - 0.013 * canvas.unit * bird.light)
    canvas.fill(glint, rim, (250, 250, 250))


def draw_plumage(canvas: Canvas, body: Frame, bird: Individual) -> None:
    """Short strokes along the body, lighter and darker, that read as feathers."""
    start = bird.barbs[:, :2] * (0.55, 0.32) + (0, -0.02)
    end = start - (1.0, -0.15) * (0.05 + 0.03 * bird.barbs[:, 2:3])
    lines = body.map(np.stack([start, end], axis=1))
    for line, lightness in zip(lines, bird.barbs[:, 3].tolist(), strict=True):
        canvas.crease(line, 22 * lightness)


def paint_bird(side: int, body: Frame, bird: Individual, species: Species) -> Image.Image:
    """Paints the bird on a transparent layer (RGBA) of the given side."""
    unit = body.unit
    canvas = Canvas(side, bird, unit)
    head = body.child((0.36, -0.26), 0.8 * bird.pitch + bird.tilt)
    head = head.child((0, 0), 0, (bird.looking, 1.0))
    hip = Frame(unit * np.diag([bird.facing, 1.0]), body.map([HIP])[0])
    draw_tail(canvas, body, bird, species)
    if species.crown == "crest":
        canvas.fill(head.child((0, 0), 0, bird.sizes[6]), CREST, bird.palette["back"])
    draw_torso(canvas, body, head, bird)
    draw_plumage(canvas, body, bird)
    draw_breast(canvas, body, bird, species)
    draw_legs(canvas, hip, bird)
    canvas.stain([head.map(curve(CHEEK))], "belly", soft=0.02, opacity=bird.cheek)
    draw_crown(canvas, head, species)
    draw_wing(canvas, body, bird, species)
    draw_face(canvas, head, bird, species)
    return canvas.finish(bird.light)


def develop(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """The camera: slight blur, colour cast, brightness, contrast and grain."""
    blur, noise = rng.uniform(0.1, 0.8) * picture.width / 256, rng.uniform(1, 6)
    gain = rng.uniform(0.85, 1.15) * rng.normal(1, 0.04, 3)
    grain = rng.standard_normal((picture.height, picture.width, 1), dtype=np.float32)
    pixels = np.asarray(picture.filter(ImageFilter.BoxBlur(blur)), dtype=np.float32)
    pixels = (pixels - 128) * np.float32(rng.uniform(0.75, 1.1)) + np.float32(rng.uniform(113, 143))
    pixels = pixels * gain.astype(np.float32) + np.float32(noise) * grain
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def draw_bird(species: Species, rng: np.random.Generator, size: int = 256) -> Image.Image:
    """Draws one picture of a bird.

    The same generator state gives the same picture (with the same Pillow), and as many random
    numbers are used whatever the species.

    Args:
        species: What to draw, usually one of `SPECIES`.
        rng: Source of everything that varies between pictures of a species.
        size: Side of the picture in pixels.

    Returns:
        An RGB picture, size x size.
    """
    bird = sample_individual(rng)
    unit = bird.width * size / 1.5
    upright = Frame(unit * np.diag([bird.facing, 1.0]), bird.centre * size)
    body = upright.child((0, 0), -bird.pitch)
    feet = body.map([HIP])[0] + [0, 0.245 * unit]
    picture = paint_background(rng, size, feet, unit)
    foreground = paint_foreground(rng, size)

    large = Frame(SUPERSAMPLE * body.matrix, SUPERSAMPLE * body.origin)
    layer = paint_bird(SUPERSAMPLE * size, large, bird, species)
    picture.paste(layer, mask=layer)
    picture.paste(foreground, mask=foreground)
    return develop(rng, picture)


def draw_file(job: tuple[Path, int, tuple[int, ...]]) -> None:
    """Draw one picture into a file; for processes, which take one argument.

    Args:
        job: The file, the species' number, and the seed.
    """
    path, species, seed = job
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_bird(SPECIES[species], np.random.default_rng(seed)).save(path, quality=92)
