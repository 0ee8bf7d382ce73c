"""Files of weights: error messages about wrong ones, and strict loading."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cxlp.backbones.backbone import Backbone
from cxlp.backbones.weights import in_order, load_strictly, read_state_dict
from cxlp.utils.errors import CxlpError

STATE = {"conv.weight": torch.rand(2, 3), "conv.bias": torch.rand(2)}


@pytest.mark.parametrize(
    "saved",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3},
        {"model": STATE, "args": "x"},
        {f"module.{k}": v for k, v in STATE.items()},
        {"state_dict": {"model": {f"module.{k}": v for k, v in STATE.items()}}},
        {f"module._orig_mod.{k}": v for k, v in STATE.items()},
        {"state_dict_ema": {}, "state_dict": STATE},
        {"model": STATE, "args": argparse.Namespace(lr=0.1)},  # scripts of timm and torchvision
        {"state_dict": {k: 0 * v for k, v in STATE.items()}, "state_dict_ema": STATE},
        {"model": {}, "model_ema": {"n_averaged": torch.tensor(5), **{f"module.{k}": v for k, v in STATE.items()}}},
    ],
    ids=[
        "plain",
        "state_dict",
        "model",
        "module.",
        "all",
        "compiled",
        "empty",
        "arguments",
        "averaged",
        "AveragedModel",
    ],
)
def test_nested_state_dicts_are_found(saved: dict[str, Any], tmp_path: Path) -> None:
    torch.save(saved, tmp_path / "w.pth")
    found = read_state_dict(tmp_path / "w.pth")
    assert list(found) == list(STATE)
    assert all(torch.equal(found[k], STATE[k]) for k in STATE)


def test_a_missing_file_suggests_similar_names(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "resnet18.pth")
    with pytest.raises(CxlpError, match=r"not found: .*resnet19.pth. Did you mean 'resnet18.pth'"):
        read_state_dict(tmp_path / "resnet19.pth")
    with pytest.raises(CxlpError, match=r"not found: .*There is no folder .*nowhere"):
        read_state_dict(tmp_path / "nowhere" / "w.pth")
    with pytest.raises(CxlpError, match="not found"):  # a folder instead of a file
        read_state_dict(tmp_path)


class Trap:
    """Would create a file when it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.made,)


@pytest.mark.filterwarnings("ignore:.*(TorchScript|torch.jit)")
def test_unreadable_files_are_named_and_run_no_code(tmp_path: Path) -> None:
    reasons = {
        "empty.pth": r"it is empty.*\(\w+\)",
        "page.pth": "it is a web page",
        "pointer.pth": "it is a Git LFS pointer",
        "picture.pth": r"it is empty.*\(\w+\)",
        "legacy.pth": r"it is empty.*\(\w+\)",
        "half.pth": r"it is empty.*\(\w+\)",
        "half.safetensors": r"it is empty.*\(\w+\)",
        "page.safetensors": "it is a web page",
        "trap.pth": r"it contains objects other than tensors.*state_dict\(\)",
        "module.pth": "it contains objects other than tensors",
        "script.pt": "it is a TorchScript archive",
    }
    for name in ("empty.pth", "page.pth", "page.safetensors", "pointer.pth"):
        content = {
            "page": b"\n<!DOCTYPE html><html>not found</html>",
            "pointer": b"version https://git-lfs.github.com/",
        }
        (tmp_path / name).write_bytes(content.get(name.partition(".")[0], b""))
    (tmp_path / "picture.pth").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    torch.save(STATE, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "legacy.pth").write_bytes((tmp_path / "legacy.pth").read_bytes()[:-9])
    torch.save(STATE, tmp_path / "whole.pth")
    save_file(STATE, tmp_path / "whole.safetensors")
    for kind in ("pth", "safetensors"):
        whole = (tmp_path / f"whole.{kind}").read_bytes()
        (tmp_path / f"half.{kind}").write_bytes(whole[: len(whole) // 2])
    torch.save({"w": Trap(tmp_path / "made")}, tmp_path / "trap.pth")
    torch.save(nn.Linear(1, 1), tmp_path / "module.pth")
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), tmp_path / "script.pt")
    for name, reason in reasons.items():
        with pytest.raises(CxlpError, match=rf"{name} is not a readable weights file: {reason}"):
            read_state_dict(tmp_path / name)
    assert not (tmp_path / "made").exists()


def test_an_onnx_file_is_for_caffenet() -> None:
    with pytest.raises(CxlpError, match=r"net\.onnx is an ONNX file, .*caffenet"):
        Backbone("timm/test_resnet", ("layer3",), weights="net.onnx", image_size=32)


def test_safetensors_are_read(tmp_path: Path) -> None:
    for name in ("w.safetensors", "pytorch_model.bin"):  # recognised by content
        save_file(STATE, tmp_path / name)
        found = read_state_dict(tmp_path / name)
        assert found.keys() == STATE.keys() and all(torch.equal(found[k], STATE[k]) for k in STATE)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "list"),
        ({"epoch": 3, "net": STATE}, "entries 'epoch', 'net'"),
        (torch.rand(3), "Tensor"),
        ({}, "nothing"),
        ({0: torch.rand(3)}, "entries 0"),
        ({"state_dict": {}}, "entries 'state_dict'"),
        ({"model": {"student": STATE, "teacher": STATE}}, "entries 'student', 'teacher'"),
    ],
)
def test_a_file_without_a_state_dict_is_refused(content: object, said: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CxlpError, match=rf"w.pth contains no state dict .*, but {said}: .*state_dict\(\)"):
        read_state_dict(tmp_path / "w.pth")


# --- loading


class Whole(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, classes)


class Kept(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)


def test_a_classifier_of_other_classes_is_accepted_and_left_out() -> None:
    kept, state = Kept(), Whole(classes=99).state_dict()
    load_strictly(kept, Whole(), state, "f.pth")
    assert all(torch.equal(v, state[k]) for k, v in kept.state_dict().items())
    load_strictly(Kept(), Whole(), {k: v for k, v in state.items() if not k.startswith("head")}, "f.pth")


def test_batch_counters_may_be_absent() -> None:
    state = Whole().state_dict()
    del state["norm.num_batches_tracked"]
    load_strictly(Kept(), Whole(), state, "f.pth")


def test_everything_that_does_not_fit_is_named_and_nothing_is_loaded() -> None:
    kept, state = Kept(), Whole().state_dict()
    before = {k: v.clone() for k, v in kept.state_dict().items()}
    del state["conv.bias"]
    state["norm.weight"] = torch.rand(7)
    state["neck.weight"] = torch.rand(1)
    with pytest.raises(CxlpError) as caught:
        load_strictly(kept, Whole(), state, "f.pth")
    message = str(caught.value)
    assert message.startswith("f.pth does not fit this network: ")
    assert "1 missing (conv.bias)" in message
    assert "1 unknown (neck.weight)" in message
    assert "1 of another shape (norm.weight: (7,) in the file, (4,) in the network)" in message
    assert all(torch.equal(v, before[k]) for k, v in kept.state_dict().items())


def test_errors_for_another_networks_file_are_short() -> None:
    state = {f"layer{i}.weight": torch.rand(1) for i in range(50)}
    with pytest.raises(CxlpError, match=r"6 missing .*50 unknown \(layer0.weight; .*layer3.weight; \.\.\.\)"):
        load_strictly(Kept(), Whole(), state, "f.pth")


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 1e300])
def test_numbers_that_are_not_finite_are_refused_by_name(value: float) -> None:
    kept, state = Kept(), {k: v.double() if v.is_floating_point() else v for k, v in Whole().state_dict().items()}
    before = {k: v.clone() for k, v in kept.state_dict().items()}
    state["head.weight"][0, 0] = value  # above the extracted layers
    load_strictly(Kept(), Whole(), state, "f.pth")
    state["norm.running_var"][2] = value
    with pytest.raises(CxlpError, match=r"^f\.pth contains NaN or infinity in norm\.running_var: "):
        load_strictly(kept, Whole(), state, "f.pth")
    assert all(torch.equal(v, before[k]) for k, v in kept.state_dict().items())


def test_infinite_constants_of_the_network_are_accepted() -> None:
    def masked(value: float = float("-inf")) -> nn.Module:
        module = Kept()
        module.register_buffer("mask", torch.full((2, 2), value))
        return module

    kept, state = masked(), masked().state_dict()
    load_strictly(kept, masked(), state, "f.pth")
    assert torch.equal(kept.conv.weight, state["conv.weight"])  # type: ignore[union-attr, arg-type]
    with pytest.raises(CxlpError, match=r"f\.pth contains NaN or infinity in mask"):
        load_strictly(masked(0.0), masked(0.0), state, "f.pth")


@pytest.mark.parametrize("prefix", ["model.", "network.backbone.trunk.", "encoder_q.module."])
def test_a_prefix_of_the_names_is_ignored(prefix: str) -> None:
    state = Whole().state_dict()
    kept, saved = Kept(), {prefix + k: v for k, v in state.items()} | {"loss.weight": torch.rand(3)}
    load_strictly(kept, Whole(), saved, "f.pth")
    assert all(torch.equal(v, state[k]) for k, v in kept.state_dict().items())
    both = saved | {"teacher." + k: v for k, v in state.items()}  # ambiguous
    with pytest.raises(CxlpError, match=rf"f\.pth contains several networks .*'{prefix}', 'teacher\.'"):
        load_strictly(Kept(), Whole(), both, "f.pth")
    trunk = {k: v for k, v in saved.items() if "head" not in k}  # fewer names are not decisive
    old = {"old." + k: 0 * v for k, v in state.items()}
    with pytest.raises(CxlpError, match=rf"several networks .*'old\.', '{prefix}': "):
        load_strictly(Kept(), Whole(), trunk | old, "f.pth")
    with pytest.raises(CxlpError, match=r"f\.pth does not fit this network: 8 unknown \(old\.conv"):  # not 'old.' alone
        load_strictly(Kept(), Whole(), state | old, "f.pth")
    del saved[prefix + "conv.bias"]
    with pytest.raises(CxlpError, match=r"f\.pth does not fit this network: 1 missing \(conv\.bias\)$"):
        load_strictly(Kept(), Whole(), saved, "f.pth")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    "change",
    [
        Tensor.long,
        Tensor.to_sparse,
        lambda w: w.to(torch.complex64),
        Tensor.bool,
        lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8),
        lambda w: w.to("meta"),
    ],
    ids=["whole", "sparse", "complex", "truth", "quantised", "meta"],
)
def test_tensors_of_another_kind_are_refused_by_name(change: Callable[[Tensor], Tensor]) -> None:
    kept, state = Kept(), Whole().state_dict()
    before = kept.conv.weight.clone()
    state["conv.weight"] = change(state["conv.weight"])
    with pytest.raises(CxlpError, match=r"f\.pth: conv\.weight is torch\..*: save dense floating point"):
        load_strictly(kept, Whole(), state, "f.pth")
    assert torch.equal(kept.conv.weight, before)


class Renamed(Kept):
    """Converts names of its old files, as torchvision's transformers do, and raises an error for unknown ones."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        if "strange" in state_dict:
            raise ValueError("version is missing")
        for name in ("weight", "bias"):
            if f"{prefix}convolution.{name}" in state_dict:
                state_dict[f"{prefix}conv.{name}"] = state_dict.pop(f"{prefix}convolution.{name}")
        super()._load_from_state_dict(state_dict, prefix, *rest)


def test_older_names_that_the_network_supports_are_accepted() -> None:
    whole, old = Renamed(), {k.replace("conv.", "convolution."): v for k, v in Kept().state_dict().items()}
    before = whole.conv.weight.clone()
    kept = Kept()
    load_strictly(kept, whole, old, "f.pth")
    assert torch.equal(kept.conv.weight, old["convolution.weight"]) and torch.equal(whole.conv.weight, before)
    for wrong in ({"more.weight": torch.rand(1)}, {"strange": torch.rand(1)}, {"convolution.bias": torch.rand(9)}):
        with pytest.raises(CxlpError, match=r"f\.pth does not fit this network"):
            load_strictly(Kept(), whole, {**old, **wrong}, "f.pth")


def test_in_order_renames_by_position() -> None:
    model = Kept()
    values = [torch.full_like(v, i) for i, v in enumerate(model.state_dict().values())]
    renamed = in_order({f"other{i}": v for i, v in enumerate(values)}, model)
    assert list(renamed) == list(model.state_dict())
    assert all(a is b for a, b in zip(renamed.values(), values, strict=True))
    with pytest.raises(CxlpError, match=r"has 1 tensors, .*network has 7"):
        in_order({"a": torch.rand(1)}, model)
