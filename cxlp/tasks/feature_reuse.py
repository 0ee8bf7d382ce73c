"""Reuse of stored features between runs."""

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from cxlp.backbones.library import users_own
from cxlp.data.datamodule import ImageDataModule
from cxlp.data.dataset import Split
from cxlp.frozen.cache import Entry, ScoredRows, StoredFeatures, digest_of_weights
from cxlp.frozen.config import FrozenConfig
from cxlp.frozen.store import FeatureType
from cxlp.models.network import Network
from cxlp.utils.distributed import ask_rank_zero
from cxlp.utils.errors import CxlpError
from cxlp.utils.fingerprint import code_digest, digest, library_versions
from cxlp.utils.profiling import peak_memory

#: Sub-packages whose code determines features.
CODE = ("utils", "backbones", "heads", "models", "data", "frozen")
#: Libraries identified by their versions rather than by their code.
_LIBRARIES = {"torch", "torchvision", "timm"}


class FeatureReuse:
    """Reads and writes the features of training, validation and test images in ``model.frozen.store``.

    All ranks call each method together, :meth:`open` first.

    Args:
        config: Options of the frozen fit, with a store.
        data: A DataModule after its ``setup``, which yields images of the network's size.

    Attributes:
        found: Whether the store holds the training features.
        taken_up: Whether this run uses the stored training features.
        files: Paths of the features within the store by split (``train``, ``val``, ``test``), valid after the run, with
            the ``kinds`` of their values by split and their dimension ``dim``.
    """

    def __init__(self, config: FrozenConfig, data: ImageDataModule) -> None:
        self.config, self.data = config, data
        self.found = self.taken_up = False
        self.files: dict[str, Any] = {}
        self._rows: ScoredRows | None = None

    def open(self, network: Network, precision: str) -> None:
        """Look for stored features. A second call has no effect.

        Args:
            network: The network before its fit.
            precision: The Trainer's precision.
        """
        if hasattr(self, "entry"):
            return
        config, self.network = self.config, network
        assert config.store is not None

        def key() -> dict[str, Any]:
            spec = network.spec()
            del spec["backbone"]["weights"]  # the source of the weights; the key contains their values instead
            return {
                "code": code_digest(CODE, [*_users_code(network), *users_own(network.backbone.name)]),
                "libraries": library_versions(),
                "backbone": spec["backbone"],
                "computation": digest(*_computation(network.backbone.trunk)),
                "heads": spec["heads"],  # test views do not concern training images; see _name
                "weights": digest_of_weights(network.backbone),
                "precision": precision,
                "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
                "TF32": torch.backends.cudnn.allow_tf32,
                "pca_vectors": config.pca_vectors,
                "features": config.features,
                "images": self.data.digest("train"),
            }

        self.entry = Entry(Path(config.store), key)
        self.found = self.entry.complete
        # Features of validation and test are stored without loss: the mean of the signs of several views is not a sign.
        signs = config.features == "sign" and network.test_view_count == 1
        self._kind: FeatureType = "sign" if signs else "float32"
        train = f"{self.entry.folder.name}/features.bin"
        self.files = {"train": train, "dim": network.out_features, "kinds": {"train": config.features}}

    def load_heads(self) -> None:
        """Load the heads that computed the stored features, and decode no training image in the sequential epoch."""
        heads = torch.load(self.entry.folder / "heads.pt", map_location="cpu", weights_only=True)
        self.network.heads.load_state_dict(heads)
        self.data.splits["train"].features = StoredFeatures(None)
        self.taken_up = True

    def use_stored(self, split: Split) -> None:
        """Replace the images of a split by their stored features, if there are any."""
        size = len(self.data.splits[split])
        path = self.entry.folder / f"{self._name(split)}.bin"
        self.files[split] = f"{self.entry.folder.name}/{path.name}"
        self.files["kinds"][split] = self._kind
        if size and self.entry.was_computed_by(self.network) and ask_rank_zero(path.is_file):
            self.data.splits[split].features = StoredFeatures(path, size, self.network.out_features, self._kind)

    def use_images(self) -> None:
        """Decode the images of all splits again, because another network needs them."""
        for split in self.data.splits.values():
            split.features = None

    def begin(self) -> Path:
        """Create the folder of the training features, and return its path."""
        return self.entry.begin()

    def commit(self, seconds: dict[str, float]) -> None:
        """Save the training features for later runs, with the seconds by phase that they took."""
        self.entry.commit(self.network, {"seconds": seconds, **peak_memory()})

    def begin_scored(self, split: Split) -> None:
        """Create a file for the features of a split, unless one exists or the entry belongs to other heads."""
        data = self.data.splits[split]
        if data.features is None and self.entry.was_computed_by(self.network):
            self._rows = ScoredRows(self.entry, self._name(split), len(data), self.network.out_features, self._kind)

    def write_scored(self, positions: Tensor, features: Tensor) -> None:
        """Write the features of a batch, if :meth:`begin_scored` has created a file."""
        if self._rows is not None:
            self._rows.write(positions, features)

    def end_scored(self) -> None:
        """Save the features of a split if they are complete."""
        if self._rows is not None:
            self._rows.close(keep=True)
            self._rows = None

    def abort(self) -> None:
        """Delete unfinished files."""
        if self._rows is not None:
            self._rows.close(keep=False)
            self._rows = None
        if hasattr(self, "entry"):
            self.entry.abort()

    def _name(self, split: Split) -> str:
        def number() -> int:
            seen = f"{self.data.digest(split)} {self.network.test_views.relevant} {self._kind}"
            return int(digest(seen, size=7), 16)

        return f"{split}-{ask_rank_zero(number):014x}"  # the same number on all ranks


def _graph(trunk: nn.Module) -> fx.Graph:
    """Return the graph of a truncated network in evaluation mode."""
    assert isinstance(trunk.eval_graph, fx.Graph)
    return trunk.eval_graph


def _computation(trunk: nn.Module) -> Iterator[str]:
    """Yield a description of the traced computation, which the name of a custom module does not determine."""
    graph = _graph(trunk)
    yield graph.python_code("self").src
    for node in graph.nodes:
        if node.op == "call_module":
            yield f"{node.target}: {trunk.get_submodule(node.target)!r}"


def _users_code(network: Network) -> Iterator[object]:
    """Yield the classes, base classes and functions of heads and backbone that are not of ``_LIBRARIES``.

    Raises:
        CxlpError: If the definition of one is not in a file.
    """
    parts = [*network.backbone.modules(), *network.heads.modules()]
    called = [node.target for node in _graph(network.backbone.trunk).nodes if node.op == "call_function"]
    for code in dict.fromkeys([*(base for part in parts for base in type(part).__mro__), *called]):
        library = (getattr(code, "__module__", None) or "builtins").partition(".")[0]
        if library in _LIBRARIES or library in sys.stdlib_module_names:
            continue
        try:
            inspect.getsourcefile(code)
        except (TypeError, OSError) as error:
            raise CxlpError(
                f"model.frozen.store: {code} is not defined in a file, so changes to it would go unnoticed: move it "
                "into a module, or leave model.frozen.store out"
            ) from error
        yield code
