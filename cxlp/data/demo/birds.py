"""Small pictures of invented birds: a fine-grained data set that needs no download.

The ten species share one body plan and one palette. They differ only in the choice of five small
parts (beak, crown, wing bars, tail, breast), and no single part identifies a species: a classifier
has to recognise the *combination* of parts. Pose, size, plumage colour, light, background and
foliage in front vary from picture to picture, independently of the species.

Geometry: a part is described by points in *body lengths* (x towards the beak, y downwards) and
mapped to pixels by a `Frame`. No random number depends on the species: with the same seed, pictures
of two species differ only in the pixels of their parts.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageFilter

from cxlp.data.demo.drawing import SUPERSAMPLE, Array, Canvas, Colour, Frame, curve, flat, hsv, vary
from cxlp.data.demo.scenery import paint_background, paint_foreground


@dataclass(frozen=True)
class Species:
    """A species: a name and one choice for each of the five parts that vary."""

    name: str
    beak: Literal["cone", "needle", "hook"]
    crown: Literal["plain", "cap", "crest", "stripe"]
    wing_bars: Literal[0, 1, 2]
    tail: Literal["short", "long", "forked"]
    breast: Literal["plain", "spots", "streaks", "band"]


# Every choice occurs in at least two species. Any two species differ in two to four parts.
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


@dataclass(frozen=True)
class Individual:
    """Build, pose and plumage of a bird: everything that varies between two birds of one species."""

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


def sample_individual(rng: np.random.Generator) -> Individual:
    """Sample a bird's build, pose and plumage, independently of the species."""
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


def draw_tail(canvas: Canvas, body: Frame, bird: Individual, species: Species) -> None:
    """Draw the tail, hinged at the rump, with dark lines along the middle feathers."""
    tail = body.child((-0.46, 0.02), bird.tail_angle, bird.sizes[0])
    canvas.fill(tail, TAILS[species.tail], bird.palette["wing"])
    for y in (-0.02, 0.02):
        canvas.crease(tail.map([(0.0, y), (-0.28, y)]), -40)


def draw_legs(canvas: Canvas, hip: Frame, bird: Individual) -> None:
    """Draw two legs with three toes each, from the hip straight down to the perch."""
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
    """Draw torso, neck and head in the colour of the back, with a pale belly and throat."""
    canvas.fill(body, NECK, bird.palette["back"])
    canvas.fill(body, TORSO, bird.palette["back"])
    canvas.fill(head, HEAD, bird.palette["back"])
    canvas.stain([body.map(curve(BELLY)), head.map(curve(THROAT))], "belly", soft=0.035)


def draw_breast(canvas: Canvas, body: Frame, bird: Individual, species: Species) -> None:
    """Draw the dark pattern on the breast: nothing, round spots, long streaks or one band."""
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
    """Draw the folded wing, its shadow, its feathers, and the pale bars across it."""
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
    """Draw the crown: plain, a dark cap, or a dark stripe through the eye under a pale brow."""
    inside = [head.map(curve(HEAD))]
    if species.crown == "cap":
        canvas.stain([head.map(curve(CAP))], "dark", within=inside)
    elif species.crown == "stripe":
        canvas.stain([head.map(curve(EYE_STRIPE))], "dark", within=inside)
        canvas.stain([head.map(curve(BROW))], "pale", within=inside)


def draw_face(canvas: Canvas, head: Frame, bird: Individual, species: Species) -> None:
    """Draw beak and eye."""
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
    """Draw feathers as short lighter and darker strokes along the body."""
    start = bird.barbs[:, :2] * (0.55, 0.32) + (0, -0.02)
    end = start - (1.0, -0.15) * (0.05 + 0.03 * bird.barbs[:, 2:3])
    lines = body.map(np.stack([start, end], axis=1))
    for line, lightness in zip(lines, bird.barbs[:, 3].tolist(), strict=True):
        canvas.crease(line, 22 * lightness)


def paint_bird(side: int, body: Frame, bird: Individual, species: Species) -> Image.Image:
    """Paint the bird on a transparent layer (RGBA) of the given side."""
    unit = body.unit
    canvas = Canvas(side, bird.palette, unit)
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
    """Simulate a camera: slight blur, colour cast, brightness, contrast and grain."""
    blur, noise = rng.uniform(0.1, 0.8) * picture.width / 256, rng.uniform(1, 6)
    gain = rng.uniform(0.85, 1.15) * rng.normal(1, 0.04, 3)
    grain = rng.standard_normal((picture.height, picture.width, 1), dtype=np.float32)
    pixels = np.asarray(picture.filter(ImageFilter.BoxBlur(blur)), dtype=np.float32)
    pixels = (pixels - 128) * np.float32(rng.uniform(0.75, 1.1)) + np.float32(rng.uniform(113, 143))
    pixels = pixels * gain.astype(np.float32) + np.float32(noise) * grain
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def draw_bird(species: Species, rng: np.random.Generator, size: int = 256) -> Image.Image:
    """Draw one picture of a bird.

    The same state of the generator gives the same picture (with the same version of Pillow), and
    the number of random numbers used does not depend on the species.

    Args:
        species: The species, usually one of `SPECIES`.
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
    """Draw one picture and save it. It has a single argument, for use with ``map`` of a process pool.

    Args:
        job: The file, the index of the species, and the seed.
    """
    path, species, seed = job
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_bird(SPECIES[species], np.random.default_rng(seed)).save(path, quality=92)
