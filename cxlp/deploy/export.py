"""Export of a fitted network to ONNX or ``torch.export``, and a check of the exported file."""

import json
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx, nn

from cxlp.deploy.predictor import Predictor
from cxlp.models.network import Network
from cxlp.utils.errors import CxlpError
from cxlp.version import __version__

Format = Literal["onnx", "torch"]
DType = Literal["uint8", "float32"]

#: Key of the description in ONNX's ``metadata_props`` and, followed by ``.json``, in the extra files of ``.pt2``.
METADATA = "cxlp"
#: Tolerance for differences of logits, relative to the largest logit or to 1. Sums in another order cause differences,
#: which square roots amplify.
TOLERANCE = 1e-3
#: Packages that are needed only to write and run ONNX files.
ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Check:
    """Comparison of an exported file with its network.

    Attributes:
        images: Number of images.
        difference: Largest absolute difference of logits.
        largest: Largest absolute logit of the network, as the scale for ``difference``.
        same: Number of images for which both predict the same class.
        network_ms: Median time of the network for one image, in milliseconds.
        exported_ms: Median time of the exported file for one image, in milliseconds, measured alternately with the
            network and with the same number of threads.
    """

    images: int
    difference: float
    largest: float
    same: int
    network_ms: float
    exported_ms: float

    @property
    def tolerated(self) -> float:
        """Largest tolerated difference of logits, see :data:`TOLERANCE`."""
        return TOLERANCE * max(1.0, self.largest)

    @property
    def passed(self) -> bool:
        """Whether the logits equal the network's within the tolerance."""
        return self.difference <= self.tolerated  # False for NaN


def describe(model: Predictor, dtype: DType) -> dict[str, Any]:
    """Return a description of an exported file's input and output as plain values, enough to use the file."""
    size, classes = model.transform.size, len(model.classes)
    how = (
        f"resize to {size} x {size} without keeping the aspect ratio"
        if model.transform.aspect == "warp"
        else f"resize the short side to {size}, then crop the central {size} x {size}"
    )
    if model.transform.described:
        how = f"apply `transform`, then {how}"
    return {
        "made_by": f"cxlp {__version__}",
        "backbone": model.network.backbone.name,
        "classes": list(model.classes),
        "multi_label": model.multi_label,
        "size": size,
        "aspect": model.transform.aspect,
        "transform": list(model.transform.described),
        "resize": f"{how}; bicubic, antialiased (Pillow's BICUBIC), after EXIF orientation",
        "input": {
            "name": "images",
            "shape": ["batch", 3, size, size],
            "dtype": dtype,
            "values": f"RGB, {'0..255' if dtype == 'uint8' else '0..1'}: the file normalises the values itself",
        },
        "output": {
            "name": "logits",
            "shape": ["batch", classes],
            "probabilities": "sigmoid of each" if model.multi_label else "softmax",
        },
    }


def export(model: Predictor, path: Path, form: Format, dtype: DType = "uint8") -> list[Path]:
    """Export a network with its normalisation of pixel values and test views, for any batch size.

    Args:
        model: The predictor, on the CPU and in float32.
        path: Path of the file, which is created atomically.
        form: ``onnx``, or ``torch`` (``.pt2``, for ``torch.export.load``).
        dtype: Type of the input: ``uint8`` in 0..255, or ``float32`` in 0..1.

    Returns:
        Paths of the files. An ONNX model of more than 2 GB has its weights in a second file.

    Raises:
        CxlpError: If packages are missing, or torch cannot trace or convert the network.
    """
    if form == "onnx":
        _check_onnx(model.network)
    size = model.transform.size
    # Two images, because torch.export would treat a batch size of one as a constant.
    example = torch.zeros(2, 3, size, size, dtype=getattr(torch, dtype))
    batch = ({0: torch.export.Dim("batch", min=1)},)
    try:
        with torch.no_grad():
            program = torch.export.export(_Scores(model), (example,), dynamic_shapes=batch, strict=False)
    except Exception as error:  # tracing fails with many types of exceptions
        raise CxlpError(f"torch.export cannot trace the network as one graph: {_first_line(error)}") from error
    for graph in (module.graph for module in program.graph_module.modules() if isinstance(module, fx.GraphModule)):
        for node in graph.nodes:
            node.meta.pop("stack_trace", None)  # contains file paths of this computer
    text = json.dumps(describe(model, dtype), ensure_ascii=False)
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        aside = Path(folder) / path.name
        if form == "onnx":
            _write_onnx(program, aside, text)
        else:
            with warnings.catch_warnings():
                # A warning about weights that are part of a larger storage on a GPU. These weights are on the CPU.
                warnings.filterwarnings("ignore", "No complete tensor found")
                torch.export.save(program, aside, extra_files={f"{METADATA}.json": text})
        # Move the main file last, when the file of weights that it refers to exists.
        files = sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name)
        return [file.replace(path.parent / file.name) for file in files]


def _write_onnx(program: torch.export.ExportedProgram, path: Path, metadata: str) -> None:
    from torch.onnx import OnnxExporterError

    try:
        written = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: "batch"},),
            verbose=False,
        )
    except OnnxExporterError as error:
        reason = _first_line(error.__cause__ or error)
        raise CxlpError(
            f"the network cannot be exported to ONNX: {reason}. Use PyTorch's format: --format torch"
        ) from error
    assert written is not None
    for node in written.model.graph:
        node.metadata_props.clear()  # long descriptions of each node's origin in torch
    written.model.metadata_props[METADATA] = metadata
    written.save(path)


def load_onnx(path: Path) -> Run:
    """Load an exported ONNX file with onnxruntime, on the CPU and with torch's number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def load_torch(path: Path) -> Run:
    """Load an exported ``.pt2`` file."""
    module = torch.export.load(path).module()
    return lambda images: module(images)


def check(model: Predictor, path: Path, form: Format, images: Tensor, dtype: DType = "uint8") -> Check:
    """Compare an exported file with its network.

    Args:
        model: The exported predictor.
        path: The exported file.
        form: Format of the file.
        images: ``(n, 3, T, T)`` uint8. The file is run with batches of one and of eight images.
        dtype: Type of the file's input.
    """
    run = load_onnx(path) if form == "onnx" else load_torch(path)
    if dtype == "float32":
        images = images.float() / 255
    with torch.no_grad():
        expected = torch.cat([model.network.score(part) for part in torch.split(images, 8)])
        found = torch.cat([run(part) for part in [images[:1], *torch.split(images[1:], 8)] if len(part)])
        network_ms, exported_ms = _latencies((model.network.score, run), images)
    difference, largest = (found - expected).abs().max().item(), expected.abs().max().item()
    same = int((found.argmax(dim=1) == expected.argmax(dim=1)).sum())
    return Check(len(images), difference, largest, same, network_ms, exported_ms)


class _Scores(nn.Module):
    """Module whose forward pass returns a network's mean scores over the test views."""

    def __init__(self, model: Predictor) -> None:
        super().__init__()
        self.network = model.network
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.network.score(images)
        return scores


def _latencies(runs: Sequence[Run], images: Tensor, repeats: int = 30, seconds: float = 10.0) -> list[float]:
    """Return the median time in milliseconds of each function for one image, after three warm-up runs.

    The functions run alternately, so that other load on the machine affects all of them. There are fewer repeats if
    they would take more than ``seconds``.
    """
    spent: list[list[float]] = [[] for _ in runs]
    begin = time.perf_counter()
    for i in range(3 + repeats):
        image = images[i % len(images)][None]
        for run, own in zip(runs, spent, strict=True):
            start = time.perf_counter()
            run(image)
            own.append(time.perf_counter() - start)
        if i >= 3 and time.perf_counter() - begin > seconds:
            break
    return [1000 * float(np.median(own[3:])) for own in spent]


def _check_onnx(network: Network) -> None:
    """Raise :class:`CxlpError` for missing packages or unsupported heads, before the slow export."""
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if missing:
        raise CxlpError(
            f"the export to ONNX needs {', '.join(missing)}: pip install {' '.join(ONNX_PACKAGES)}, or use "
            "--format torch"
        )
    for head in network.each_head():
        if head.onnx_obstacle is not None:
            raise CxlpError(
                f"{head.name} cannot be exported to ONNX: {head.onnx_obstacle}. Use PyTorch's format: --format torch"
            )


def _first_line(error: BaseException) -> str:
    lines: Sequence[str] = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
