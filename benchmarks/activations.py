"""Memory per image in training: the activations that autograd saves for the backward pass.

    python benchmarks/activations.py
    python benchmarks/activations.py finetune_resnet50.yaml --classes 10

The sizes of the tensors that a forward pass saves for two images minus those for one image are counted, on the CPU with
random weights. With SGD, each parameter takes 12 bytes: weight, gradient and momentum in float32.
"""

import argparse

import measuring  # noqa: F401 (makes the package importable)
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from cxlp.models.network import Network
from cxlp.runs.cli import model_of, parse

RECIPES = (
    "squeezenet.yaml",
    "finetune_efficientnet.yaml",
    "finetune_resnet50.yaml",
    "finetune_convnext.yaml",
    "finetune_vgg16.yaml",
)


def saved_bytes(network: Network, images: int, half: bool) -> int:
    """Return the bytes that autograd saves in a forward pass, without the parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, Tensor] = {}  # keeps the tensors alive: the address of a freed storage could be reused

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    pictures = torch.rand(images, 3, network.image_size, network.image_size)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=half),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        network(pictures)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=RECIPES, help="overlays in configs/")
    parser.add_argument("--classes", type=int, default=200)
    args = parser.parse_args()
    table = Table("recipe", "pixels", title=f"{args.classes} classes")
    for column in ("parameters, M", "their memory, GB", "MB per image, float32", "MB per image, bf16-mixed"):
        table.add_column(column, justify="right")
    for recipe in args.recipes:
        config = parse(["--config", "cub200.yaml", "--config", recipe, "--model.backbone.weights", "null"])
        network = model_of(config).build(tuple(map(str, range(args.classes))), multi_label=False).train()
        parameters = sum(p.numel() for p in network.parameters())
        images = [saved_bytes(network, 2, half) - saved_bytes(network, 1, half) for half in (False, True)]
        table.add_row(
            recipe, f"{network.image_size}", f"{parameters / 1e6:.1f}", f"{12 * parameters / 1e9:.2f}",
            *(f"{size / 1e6:.0f}" for size in images),
        )  # fmt: skip
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
