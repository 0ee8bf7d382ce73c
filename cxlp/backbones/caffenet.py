"""CaffeNet, the paper's network, with weights from an ONNX file."""

from pathlib import Path

import torch
from torch import Tensor, nn

from cxlp.utils.errors import CxlpError

CAFFENET_URL = "https://github.com/onnx/models/raw/main/validated/vision/classification/caffenet/model/caffenet-12.onnx"
CAFFENET_SHA256 = "ea563e5c47d1f58e1717cf1a2d8bf288b8adc07af0ad228b622096cd243aeecb"


class FullPrecisionLRN(nn.LocalResponseNorm):
    """Local response normalisation in float32, also under autocast.

    The normalisation squares activations of images in 0..255. In float16, activations above 256
    would overflow, and the strongest activations would become zero.
    """

    traced_as_one = True  # torch.fx cannot trace the autocast context, see feature_extraction.trace

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(B, C, H, W)``; the result has the same shape and dtype."""
        with torch.autocast(x.device.type, enabled=False):
            normed: Tensor = super().forward(x.float() if x.dtype in (torch.float16, torch.bfloat16) else x)
            return normed.to(x.dtype)


class CaffeNet(nn.Module):
    """BVLC reference CaffeNet: AlexNet in two groups, with pooling before normalisation.

    The input is ``(B, 3, 227, 227)``, BGR in 0..255 minus the mean (104, 117, 123), without scaling.
    Caffe rounds pooled sizes up (``ceil_mode``). The maps of conv3, conv4 and conv5 are 13x13 with
    384, 384 and 256 channels. Source: ``bvlc_reference_caffenet/deploy.prototxt``.

    Args:
        num_classes: Number of outputs of fc8.
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 11, stride=4)
        self.relu1 = nn.ReLU(inplace=True)
        self.pool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.norm1 = FullPrecisionLRN(5, alpha=1e-4, beta=0.75)
        self.conv2 = nn.Conv2d(96, 256, 5, padding=2, groups=2)
        self.relu2 = nn.ReLU(inplace=True)
        self.pool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.norm2 = FullPrecisionLRN(5, alpha=1e-4, beta=0.75)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.relu3 = nn.ReLU(inplace=True)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1, groups=2)
        self.relu4 = nn.ReLU(inplace=True)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1, groups=2)
        self.relu5 = nn.ReLU(inplace=True)
        self.pool5 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.flatten = nn.Flatten()
        self.fc6 = nn.Linear(256 * 6 * 6, 4096)
        self.relu6 = nn.ReLU(inplace=True)
        self.drop6 = nn.Dropout(0.5)
        self.fc7 = nn.Linear(4096, 4096)
        self.relu7 = nn.ReLU(inplace=True)
        self.drop7 = nn.Dropout(0.5)
        self.fc8 = nn.Linear(4096, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers in the order of their definition: ``(B, 3, 227, 227) -> (B, num_classes)``."""
        for layer in self.children():
            x = layer(x)
        return x


def onnx_state_dict(path: Path) -> dict[str, Tensor]:
    """Read CaffeNet's weights from an ONNX file.

    Convolutions and fully connected layers are read in the order of the file's graph. The names of
    the tensors in the file do not matter.

    Args:
        path: The ``.onnx`` file.

    Returns:
        A state dict for :class:`CaffeNet`.

    Raises:
        CxlpError: If the file is not an ONNX model or does not contain CaffeNet's eight layers.
    """
    # Imported here because onnx is slow to import and only this function needs it.
    import onnx
    from onnx import numpy_helper

    try:
        graph = onnx.load(str(path)).graph
    except Exception as error:  # protobuf's DecodeError is not a ValueError
        raise CxlpError(f"{path} is not a readable ONNX file: {error}") from error
    tensors = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            transposed = node.op_type == "Gemm" and any(a.name == "transB" and a.i == 1 for a in node.attribute)
            held = [tensors[name] for name in node.input[1:3] if name in tensors]
            if len(held) != 2:
                raise CxlpError(f"{path}: layer {node.name or node.output[0]!r} does not have a weight and a bias")
            weight, bias = held
            found.append((weight if node.op_type == "Conv" or transposed else weight.t().contiguous(), bias))
    with torch.device("meta"):  # only the names are needed, not 61 million random weights
        layers = [name for name, layer in CaffeNet().named_children() if isinstance(layer, nn.Conv2d | nn.Linear)]
    if len(found) != len(layers):
        raise CxlpError(
            f"{path} has {len(found)} convolutional and fully connected layers, but CaffeNet has {len(layers)}: pass "
            "a file of CaffeNet"
        )
    state = {}
    for name, (weight, bias) in zip(layers, found, strict=True):
        state[f"{name}.weight"], state[f"{name}.bias"] = weight, bias.flatten()
    return state
