"""Figures of explanations: evidence and pooling channels over an image, and the patches of channels."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from cxlp.explain.attribution import Explanation, explain
from cxlp.heads.views import resized
from cxlp.models.network import Network
from cxlp.reports.drawing import as_png, label
from cxlp.utils.spelling import percent, shown_names
from cxlp.utils.threads import one_thread

#: Colour map of evidence: red is for the class, blue against it.
EVIDENCE = colormaps["RdBu_r"]
#: Number of channels in a row.
COLUMNS = 4

Picture = np.ndarray[Any, np.dtype[np.float64]]
#: A class, and 1 if it is present or -1 if it is absent.
Statement = tuple[int, int]


@as_png
def draw_explanation(
    image: Tensor,
    proportion: float,
    explanation: Explanation,
    channels: Sequence[int],
    classes: Sequence[str],
    note: str = "",
) -> Figure:
    """Draw an image, the evidence over it, the cumulative score over channels, and each channel's activations.

    Args:
        image: ``(3, S, S)`` uint8, the input of the network.
        proportion: Height divided by width of the original image, to which the square is stretched.
        explanation: The explanation of the image.
        channels: Pooling channels to show, counted over all heads.
        classes: Names of the classes.
        note: A line of text below the figure.
    """
    picture = image.permute(1, 2, 0).numpy() / 255.0
    rows, height = math.ceil(len(channels) / COLUMNS), 3.0 * min(max(proportion, 0.5), 2.0) + 0.3
    figure = Figure((12.5, 0.7 + (1 + rows) * height))
    figure.suptitle(headline(explanation, classes), fontsize=11)
    # Two subfigures, because the space for the colour bar would leave a gap in each row of channels.
    grid = figure.add_gridspec(2, 1, height_ratios=(1, rows))
    above, below = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    axes = above.subplots(1, 3, width_ratios=(1, 1.25, 1.75))
    _show(axes[0], picture, proportion, "the image")
    _draw_map(axes[1], picture, proportion, explanation)
    _draw_sum(axes[2], explanation)
    for i, channel in enumerate(channels):
        beside = below.add_subplot(rows, COLUMNS, i + 1)
        share = float(explanation.channels[channel])
        title = f"{_channel_name(explanation, channel)}: {_share(explanation, share)}"
        _show(beside, _spotlight(picture, explanation.activation(channel, len(picture))), proportion, title)
        for spine in beside.spines.values():
            spine.set(visible=True, color=EVIDENCE(0.5 + 0.4 * np.sign(share)), linewidth=2)
    if note:
        figure.supxlabel(note, fontsize=8)
    return figure


def draw_evidence(network: Network, pictures: Tensor, statements: Sequence[Sequence[Statement]]) -> list[list[Tensor]]:
    """Draw the evidence for statements over grey images. The stronger the evidence, the more opaque its colour.

    Evidence against a class is evidence for the statement that the class is absent.

    Args:
        network: A fitted network that passes :func:`~cxlp.explain.attribution.check_explainable`.
        pictures: ``(B, 3, T, T)`` uint8, the inputs of the network in the test.
        statements: The statements about each image.

    Returns:
        For each image, a drawing ``(3, T, T)`` uint8 per statement.
    """
    images = resized(pictures.to(network.backbone.mean.device), network.image_size)
    classes = [list(dict.fromkeys(k for k, _ in own)) for own in statements]
    explanations = explain(network, images, classes)  # one pass of the network over all of them
    drawn = []
    for picture, asked, own in zip(pictures, classes, statements, strict=True):
        found = {k: next(explanations) for k in asked}
        drawn.append([_coloured(picture, found[k], sign) for k, sign in own])
    return drawn


@one_thread()
def _coloured(picture: Tensor, explanation: Explanation, sign: int) -> Tensor:
    evidence = sign * explanation.map(picture.shape[-1])
    evidence = evidence / evidence.abs().max().clamp_min(1e-12)
    colours = torch.from_numpy(EVIDENCE((0.5 + 0.5 * evidence).numpy())[..., :3]).permute(2, 0, 1)
    opacity = 0.8 * evidence.abs().sqrt()
    grey = picture.double().mean(dim=0, keepdim=True) / 255
    return (255 * ((1 - opacity) * grey + opacity * colours)).round().to(torch.uint8)


def headline(explanation: Explanation, classes: Sequence[str]) -> str:
    """Describe the explained class, its probability, and its score as the sum of evidence and bias."""
    names = shown_names(classes)

    def named(k: int) -> str:
        return f"{label(names[k], 60)} (probability {percent(float(explanation.probabilities[k]))})"

    over = "" if explanation.against is None else f" rather than {named(explanation.against)}"
    what = "score" if explanation.against is None else "difference of scores"
    parts = f"{explanation.score:+.3f} = evidence {explanation.evidence:+.3f}, bias {explanation.bias:+.3f}"
    return f"{named(explanation.target)}{over}\n{what} {parts}"


@as_png
def draw_patches(rows: Sequence[tuple[str, Sequence[tuple[Tensor, str]]]]) -> Figure:
    """Draw patches of images, one row per pooling channel.

    Args:
        rows: For each channel, its name and its patches ``(3, s, s)`` uint8, each with a caption.
    """
    columns = max(len(patches) for _, patches in rows)
    pitch = 1.2  # distance between rows in sides of a patch, with space for captions
    figure = Figure((1.5 + 1.25 * columns, 0.1 + 1.25 * pitch * len(rows)))
    axes = figure.add_subplot()  # a single one: with one for each patch, the layout takes a minute
    for i, (_, patches) in enumerate(rows):
        for j, (patch, said) in enumerate(patches):
            picture = patch.permute(1, 2, 0).numpy()
            axes.imshow(picture, extent=(j + 0.02, j + 0.98, i * pitch + 0.98, i * pitch + 0.02))
            axes.text(j + 0.5, i * pitch, said, ha="center", va="bottom", fontsize=7)
    axes.set(xlim=(0, columns), ylim=(len(rows) * pitch - 0.18, -0.18), xticks=[])
    axes.set_yticks([i * pitch + 0.5 for i in range(len(rows))], [name for name, _ in rows])
    axes.tick_params(length=0)
    axes.set_frame_on(False)
    return figure


def _show(axes: Axes, picture: Picture, proportion: float, title: str) -> None:
    axes.imshow(picture, extent=(0, 1, proportion, 0))
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=9)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _draw_map(axes: Axes, picture: Picture, proportion: float, explanation: Explanation) -> None:
    evidence = explanation.map(len(picture)).numpy()
    most = max(float(np.abs(evidence).max()), 1e-12)
    norm = Normalize(-most, most)
    grey = picture.mean(axis=2, keepdims=True)
    opacity = 0.8 * (np.abs(evidence) / most)[..., None] ** 0.7
    _show(
        axes,
        (1 - opacity) * grey + opacity * EVIDENCE(norm(evidence))[..., :3],
        proportion,
        "evidence: red for the class, blue against it",
    )
    bar = axes.figure.colorbar(ScalarMappable(norm, EVIDENCE), ax=axes, shrink=0.8)
    bar.set_label(f"score per 1/{1 / explanation.cell:.0f} of the image", fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _draw_sum(axes: Axes, explanation: Explanation) -> None:
    """Draw the cumulative sum of the bias and the channels' shares, largest absolute shares first."""
    shares = explanation.channels
    ordered = shares[shares.abs().argsort(descending=True)]
    total = explanation.bias + torch.cat([ordered.new_zeros(1), ordered.cumsum(dim=0)])
    axes.plot(total.numpy(), color="black")
    axes.axhline(0, color="grey", linewidth=0.8)
    half = int((ordered.abs().cumsum(dim=0) < ordered.abs().sum() / 2).sum()) + 1
    axes.set_title(f"the {half:,} strongest of {len(shares):,} channels have half of all shares", fontsize=9)
    axes.plot(len(shares), explanation.score, "o", color="black")
    axes.set_xlabel("channels, strongest first", fontsize=8)
    axes.set_ylabel("score", fontsize=8)
    axes.tick_params(labelsize=7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _channel_name(explanation: Explanation, channel: int) -> str:
    part, k = explanation.locate(channel)
    return f"channel {k}" if len(explanation.parts) == 1 else f"channel {channel} (head {part + 1}: {k})"


def _share(explanation: Explanation, share: float) -> str:
    whole = abs(explanation.evidence)
    return f"{share:+.3f}" + (f" ({share / whole:+.2%})" if whole > 0 else "")


def _spotlight(picture: Picture, activations: Tensor) -> Picture:
    """Return the image, bright where a channel's magnitude is near its maximum, and dark grey elsewhere."""
    values = activations.abs()
    light = (values / values.max().clamp_min(torch.finfo(values.dtype).tiny)).numpy()[..., None]
    lit: Picture = light * picture + (1 - light) * 0.35 * picture.mean(axis=2, keepdims=True)
    return lit
