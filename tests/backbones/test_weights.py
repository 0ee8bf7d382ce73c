"""Weights: files that say what is wrong with them, strict loading."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cxlp.backbones.weights import in_order, load_strictly, pretrained, read_state_dict
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
    ],
    ids=["plain", "state_dict", "model", "module.", "all"],
)
def test_wrappings_are_looked_through(saved: dict[str, Any], tmp_path: Path) -> None:
    torch.save(saved, tmp_path / "w.pth")
    found = read_state_dict(tmp_path / "w.pth")
    assert list(found) == list(STATE)
    assert all(torch.equal(found[k], STATE[k]) for k in STATE)


def test_a_missing_file_lists_near_ones(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "resnet18.pth")
    with pytest.raises(CxlpError, match=r"not found: .*resnet19.pth. Did you mean 'resnet18.pth'"):
        read_state_dict(tmp_path / "resnet19.pth")
    with pytest.raises(CxlpError, match=r"not found: .*There is no folder .*nowhere"):
        read_state_dict(tmp_path / "nowhere" / "w.pth")
    with pytest.raises(CxlpError, match="not found"):  # a folder is no file
        read_state_dict(tmp_path)


class Trap:
    """Would make a file when it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.made,)


def test_unreadable_files_are_named_and_run_no_code(tmp_path: Path) -> None:
    (tmp_path / "empty.pth").touch()
    (tmp_path / "garbage.pth").write_bytes(b"<!DOCTYPE html><html>not found</html>" * 9)
    whole = tmp_path / "whole.pth"
    torch.save(STATE, whole)
    (tmp_path / "half.pth").write_bytes(whole.read_bytes()[:700])
    torch.save({"w": Trap(tmp_path / "made")}, tmp_path / "trap.pth")
    for name in ("empty", "garbage", "half", "trap"):
        with pytest.raises(CxlpError, match=rf"{name}.pth is not a readable weights file"):
            read_state_dict(tmp_path / f"{name}.pth")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.rand(3), {}, {0: torch.rand(3)}, {"state_dict": {}}])
def test_a_file_without_a_state_dict_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CxlpError, match=r"w.pth holds no state dict"):
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


def test_a_file_of_another_network_gets_a_short_list() -> None:
    state = {f"layer{i}.weight": torch.rand(1) for i in range(50)}
    with pytest.raises(CxlpError, match=r"6 missing .*50 unknown \(layer0.weight; .*layer3.weight; \.\.\.\)"):
        load_strictly(Kept(), Whole(), state, "f.pth")


def test_in_order_renames_by_place() -> None:
    model = Kept()
    values = [torch.full_like(v, i) for i, v in enumerate(model.state_dict().values())]
    renamed = in_order({f"other{i}": v for i, v in enumerate(values)}, model)
    assert list(renamed) == list(model.state_dict())
    assert all(a is b for a, b in zip(renamed.values(), values, strict=True))
    with pytest.raises(CxlpError, match="holds 1 tensors, the network 7"):
        in_order({"a": torch.rand(1)}, model)


def test_pretrained_explains_a_failing_hub() -> None:
    model = nn.Linear(1, 1)
    assert pretrained(lambda: model, "net") is model

    def fail() -> nn.Module:
        raise ConnectionError("x" * 1000)

    with pytest.raises(CxlpError, match=r"weights of net: ConnectionError: x+\. Offline\? .*local FILE") as caught:
        pretrained(fail, "net")
    assert len(str(caught.value)) < 600
    assert isinstance(caught.value.__cause__, ConnectionError)
