"""The scenery of the birds: background, perch, and foliage near the camera."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from cxlp.data.demo.drawing import SUPERSAMPLE, Array, Colour, Frame, curve, flat, vary

# Backgrounds: colour at the top, colour at the bottom, colour of the leaves.
HABITATS: tuple[tuple[Colour, Colour, Colour], ...] = (
    ((150, 190, 120), (62, 92, 48), (84, 126, 52)),  # wood
    ((176, 204, 226), (120, 142, 96), (96, 122, 66)),  # open country
    ((206, 200, 182), (138, 122, 92), (150, 118, 62)),  # reeds
    ((84, 106, 92), (52, 66, 46), (76, 108, 66)),  # deep shade
    ((222, 186, 136), (130, 92, 58), (172, 96, 44)),  # autumn
    ((196, 206, 210), (128, 140, 144), (110, 124, 112)),  # mist
)


def leaf(rng: np.random.Generator, place: Array, length: float) -> Array:
    """Return the outline of a leaf, (n, 2) pixels, from its stalk at `place`, in a random direction."""
    outline = [(0.0, 0.0), (0.3, 0.2), (0.7, 0.17), (1.0, 0.0), (0.7, -0.16), (0.3, -0.2)]
    stretch = (length, length * rng.uniform(0.6, 1.3))
    frame = Frame(np.eye(2), place).child((0, 0), rng.uniform(0, 2 * np.pi), stretch)
    return frame.map(outline)


def twig(rng: np.random.Generator) -> Array:
    """Return a slightly bent line, (9, 2), across a picture 128 pixels wide."""
    ends, bend = rng.uniform(-20, 148, size=(2, 2)), rng.normal(0, 14, 2)
    t = np.linspace(0, 1, 9)[:, None]
    line: Array = (1 - t) * ends[0] + t * ends[1] + 4 * t * (1 - t) * bend
    return line


def paint_background(rng: np.random.Generator, size: int, perch: Array, unit: float) -> Image.Image:
    """Paint the background, out of focus, and the bird's perch, in focus.

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
    """Paint a bent branch through the pixel `perch`, lit from above, with streaks of bark."""
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
    """Paint grassy ground: small blades in the distance (at the height of `perch`), large ones near."""
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
    """Paint the leaves, twigs and grass between bird and camera: RGBA, size x size."""
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
