"""A fitted network as a file for other runtimes, ONNX or ``torch.export``, and the check that it computes the same."""

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

#: The key of the description, in ONNX's ``metadata_props`` and (with ``.json``) among the extra files of ``.pt2``.
METADATA = "cxlp"
#: What logits may differ by, in parts of the largest one or of 1: other orders of summing, behind square roots.
TOLERANCE = 1e-3
#: What writing and running ONNX takes beside what cxlp needs itself.
ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Check:
    """An exported file against its network.

    Attributes:
        images: How many were compared.
        difference: Largest absolute difference of logits.
        largest: Largest absolute logit of the network, to judge that by.
        same: On how many images both have the same class on top.
        network_ms: Median milliseconds of the network for one image.
        exported_ms: The same of the exported file, in turns, on as many threads.
    """

    images: int
    difference: float
    largest: float
    same: int
    network_ms: float
    exported_ms: float

    @property
    def tolerated(self) -> float:
        """What the logits may differ by, see :data:`TOLERANCE`."""
        return TOLERANCE * max(1.0, self.largest)

    @property
    def passed(self) -> bool:
        """Whether the logits are the network's."""
        return self.difference <= self.tolerated  # not so for NaN


def describe(model: Predictor, dtype: DType) -> dict[str, Any]:
    """Say what an exported file expects and gives, as plain values: all that its user needs beside it."""
    size, classes = model.transform.size, len(model.classes)
    how = (
        f"resize to {size} x {size}, the aspect ratio not kept"
        if model.transform.aspect == "warp"
        else f"resize the short side to {size}, keep the {size} x {size} in the centre"
    )
    if model.transform.described:
        how = f"change by `transform`, then {how}"
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
            "values": f"RGB, {'0..255' if dtype == 'uint8' else '0..1'}: the file subtracts means itself",
        },
        "output": {
            "name": "logits",
            "shape": ["batch", classes],
            "probabilities": "sigmoid of each" if model.multi_label else "softmax",
        },
    }


def export(model: Predictor, path: Path, form: Format, dtype: DType = "uint8") -> list[Path]:
    """Write a network, preprocessing of pixel values, test views and classifier included, for batches of any size.

    Args:
        model: On the CPU, in float32.
        path: The file; put in place when it is whole.
        form: ``onnx``, or ``torch`` (``.pt2``, for ``torch.export.load``).
        dtype: Of the input: ``uint8`` of 0..255, or ``float32`` of 0..1.

    Returns:
        The files; an ONNX file above 2 GB has its weights in a second one.

    Raises:
        CxlpError: If packages are missing, or torch cannot trace or translate the network.
    """
    if form == "onnx":
        _check_onnx(model.network)
    size = model.transform.size
    # Two images: a batch of one would be taken for a constant.
    example = torch.zeros(2, 3, size, size, dtype=getattr(torch, dtype))
    batch = ({0: torch.export.Dim("batch", min=1)},)
    try:
        with torch.no_grad():
            program = torch.export.export(_Scores(model), (example,), dynamic_shapes=batch, strict=False)
    except Exception as error:  # of many kinds, by what in the network cannot be traced
        raise CxlpError(f"torch cannot trace the network as one graph: {_first_line(error)}") from error
    for graph in (module.graph for module in program.graph_module.modules() if isinstance(module, fx.GraphModule)):
        for node in graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of this machine
    text = json.dumps(describe(model, dtype), ensure_ascii=False)
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        aside = Path(folder) / path.name
        if form == "onnx":
            _write_onnx(program, aside, text)
        else:
            with warnings.catch_warnings():
                # It warns of weights that are no whole storage, lest they be on a GPU: they are not.
                warnings.filterwarnings("ignore", "No complete tensor found")
                torch.export.save(program, aside, extra_files={f"{METADATA}.json": text})
        # The one that others look for last, when what it refers to is there.
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
        raise CxlpError(f"the network cannot be written as ONNX: {reason}. As PyTorch's own: --format torch") from error
    assert written is not None
    for node in written.model.graph:
        node.metadata_props.clear()  # where in torch each came from, at some length
    written.model.metadata_props[METADATA] = metadata
    written.save(path)


def load_onnx(path: Path) -> Run:
    """Open an exported ONNX file with onnxruntime, on the CPU and as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def load_torch(path: Path) -> Run:
    """Open an exported ``.pt2`` file."""
    module = torch.export.load(path).module()
    return lambda images: module(images)


def check(model: Predictor, path: Path, form: Format, images: Tensor, dtype: DType = "uint8") -> Check:
    """Hold an exported file, as its users open it, against its network.

    Args:
        model: What was exported.
        path: The file.
        form: Its format.
        images: ``(n, 3, T, T)`` uint8; they go in by one and by eight.
        dtype: Of the file's input.
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
    """A network's scores by the test views, as its forward pass."""

    def __init__(self, model: Predictor) -> None:
        super().__init__()
        self.network = model.network
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.network.score(images)
        return scores


def _latencies(runs: Sequence[Run], images: Tensor, repeats: int = 30, seconds: float = 10.0) -> list[float]:
    """Median milliseconds of each for one image, after three to warm up; fewer repeats where they take long.

    In turns, so that whatever else the machine does slows all of them down.
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
    """Refuse in advance what would take minutes to fail."""
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if missing:
        raise CxlpError(
            f"ONNX needs {', '.join(missing)}, which nothing else does: pip install {' '.join(ONNX_PACKAGES)} "
            "(or --format torch)"
        )
    for head in network.each_head():
        if head.onnx_obstacle is not None:
            raise CxlpError(
                f"{head.name} cannot be written as ONNX: {head.onnx_obstacle}. As PyTorch's own file: --format torch"
            )


def _first_line(error: BaseException) -> str:
    lines: Sequence[str] = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
