"""Features that a run takes over from earlier runs, and those that it leaves to later ones."""

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
from cxlp.frozen.fit import FrozenConfig
from cxlp.frozen.store import FeatureType
from cxlp.models.network import Network
from cxlp.utils.distributed import ask_rank_zero
from cxlp.utils.errors import CxlpError
from cxlp.utils.fingerprint import code_digest, digest, library_versions
from cxlp.utils.profiling import peak_memory

#: Sub-packages whose code determines features.
CODE = ("utils", "backbones", "heads", "models", "data", "frozen")
#: Libraries whose versions are noted, rather than their code.
_LIBRARIES = {"torch", "torchvision", "timm"}


class FeatureReuse:
    """Stored features in ``model.frozen.store``: those of training images, and of images that the solution scores.

    All ranks call each method together, :meth:`open` first.

    Args:
        config: Options of the frozen fit, with a store.
        data: A DataModule that is set up and yields pictures of the network's size.

    Attributes:
        found: Whether the training features are there.
        taken_up: Whether they are used.
        files: Where features are once the run is over, in the store: ``train`` and those of the images that were scored
            (``val``, ``test``), with their ``kinds`` and ``dim``.
    """

    def __init__(self, config: FrozenConfig, data: ImageDataModule) -> None:
        self.config, self.data = config, data
        self.found = self.taken_up = False
        self.files: dict[str, Any] = {}
        self._rows: ScoredRows | None = None

    def open(self, network: Network, precision: str) -> None:
        """Look for the features; a second call changes nothing.

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
            del spec["backbone"]["weights"]  # where they came from; their values follow
            return {
                "code": code_digest(CODE, [*_users_code(network), *users_own(network.backbone.name)]),
                "libraries": library_versions(),
                "backbone": spec["backbone"],
                "computation": digest(*_computation(network.backbone.trunk)),
                "heads": spec["heads"],  # not the test views, which training images do not have: see _name
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
        # Scored features are stored exactly: the mean of several views' signs is no sign.
        signs = config.features == "sign" and network.test_view_count == 1
        self._kind: FeatureType = "sign" if signs else "float32"
        train = f"{self.entry.folder.name}/features.bin"
        self.files = {"train": train, "dim": network.out_features, "kinds": {"train": config.features}}

    def take_up(self) -> None:
        """Take over the heads that made the features, and have no training picture decoded in the epoch in order."""
        heads = torch.load(self.entry.folder / "heads.pt", map_location="cpu", weights_only=True)
        self.network.heads.load_state_dict(heads)
        self.data.splits["train"].features = StoredFeatures(None)
        self.taken_up = True

    def offer(self, split: Split) -> None:
        """Give the data the stored features of a split, if they are there, in place of its pictures."""
        size = len(self.data.splits[split])
        path = self.entry.folder / f"{self._name(split)}.bin"
        self.files[split] = f"{self.entry.folder.name}/{path.name}"
        self.files["kinds"][split] = self._kind
        if size and self.entry.was_made_by(self.network) and ask_rank_zero(path.is_file):
            self.data.splits[split].features = StoredFeatures(path, size, self.network.out_features, self._kind)

    def withdraw(self) -> None:
        """Have all pictures decoded again, as another network needs them."""
        for split in self.data.splits.values():
            split.features = None

    def begin(self) -> Path:
        """Make the folder for training features."""
        return self.entry.begin()

    def commit(self, seconds: dict[str, float]) -> None:
        """Keep the training features."""
        self.entry.commit(self.network, {"seconds": seconds, **peak_memory()})

    def begin_scored(self, split: Split) -> None:
        """Make a file for the features of a split, unless there is one, or other heads made the entry."""
        data = self.data.splits[split]
        if data.features is None and self.entry.was_made_by(self.network):
            self._rows = ScoredRows(self.entry, self._name(split), len(data), self.network.out_features, self._kind)

    def write_scored(self, positions: Tensor, features: Tensor) -> None:
        """Write a batch's features, if there is a file for them."""
        if self._rows is not None:
            self._rows.write(positions, features)

    def end_scored(self) -> None:
        """Keep the features of a split, if none is missing."""
        if self._rows is not None:
            self._rows.close(keep=True)
            self._rows = None

    def give_up(self) -> None:
        """Delete what is half-made."""
        if self._rows is not None:
            self._rows.close(keep=False)
            self._rows = None
        if hasattr(self, "entry"):
            self.entry.give_up()

    def _name(self, split: Split) -> str:
        def number() -> int:
            seen = f"{self.data.digest(split)} {self.network.test_views.relevant} {self._kind}"
            return int(digest(seen, size=7), 16)

        return f"{split}-{ask_rank_zero(number):014x}"  # one number for all ranks


def _graph(trunk: nn.Module) -> fx.Graph:
    """The traced computation of a cut network in evaluation."""
    assert isinstance(trunk.eval_graph, fx.Graph)
    return trunk.eval_graph


def _computation(trunk: nn.Module) -> Iterator[str]:
    """Describe what is done with the weights: the name of a module of the user's own does not tell."""
    graph = _graph(trunk)
    yield graph.python_code("self").src
    for node in graph.nodes:
        if node.op == "call_module":
            yield f"{node.target}: {trunk.get_submodule(node.target)!r}"


def _users_code(network: Network) -> Iterator[object]:
    """Yield classes and functions from elsewhere that heads, their parts and bases, and the backbone are made of.

    Raises:
        CxlpError: If one is defined in no file.
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
                f"model.frozen.store: {code} is defined in no file, so that changes of it would go unnoticed: put it "
                "into a module, or leave the store out"
            ) from error
        yield code
