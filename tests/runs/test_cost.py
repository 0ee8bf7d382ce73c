"""The measurement of costs."""

import subprocess
import sys
from pathlib import Path

import pytest
from torch import Tensor

from cxlp.backbones.backbone import Backbone
from cxlp.data.folder import Folder
from cxlp.heads import AveragePooling, CrossLayerPooling
from cxlp.heads.views import Views
from cxlp.models.network import Network
from cxlp.runs.cost import measure_cost
from cxlp.utils.profiling import PhaseTimes
from tests.generate import write_folder
from tests.tasks.small import BACKBONE


def test_costs_are_per_image_and_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = [CrossLayerPooling(pca_dim=4, views=Views("blocks")), AveragePooling()]
    network = Network(Backbone.from_config(BACKBONE), heads, ["a", "b"])
    data = Folder(write_folder(tmp_path, size=64), image_size=network.image_size)
    data.setup()
    hand = [0.0]  # a clock that advances when images pass through
    monkeypatch.setattr(PhaseTimes, "now", staticmethod(lambda: hand[0]))
    network.backbone.register_forward_hook(lambda _m, args, _o: hand.__setitem__(0, hand[0] + len(args[0])))
    held: set[int] = set()
    network.backbone.register_forward_hook(lambda module, _a, _o: held.add(len(module._holds)))
    found = measure_cost(network, data.splits["test"])
    assert found["passes"] == 5 and found["dimension"] == network.out_features
    assert found["bytes"] == 4 * network.out_features
    assert found["network"] == 5.0 and found["bare pass"] == 1.0  # one second for each image that passes
    assert found["encoding"] == found["classification"] == 0.0
    assert held == {1} and not network.backbone._holds  # the fast pass, which runs use


@pytest.mark.parametrize(
    ("seconds", "budget", "views", "rounds"),
    [(0.0, 4.0, 32, 5), (0.01, 4.0, 32, 5), (0.01, 2.0, 32, 3), (0.1, 7.1, 11, 2), (9.0, 4.0, 1, 2)],
)
def test_a_slow_network_is_measured_with_fewer_views_and_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, budget: float, views: int, rounds: int
) -> None:
    network = Network(Backbone.from_config(BACKBONE), AveragePooling(), ["a", "b"])
    data = Folder(write_folder(tmp_path, size=64), image_size=network.image_size)
    data.setup()
    hand = [0.0]
    monkeypatch.setattr(PhaseTimes, "now", staticmethod(lambda: hand[0]))
    passed = [0]

    def pass_through(_module: object, args: tuple[Tensor], _maps: object) -> None:
        hand[0] += seconds * len(args[0])
        passed[0] += len(args[0])

    network.backbone.register_forward_hook(pass_through)
    found = measure_cost(network, data.splits["test"], budget=budget)
    assert (found["views"], found["rounds"]) == (views, rounds)
    assert found["bare pass"] == pytest.approx(seconds) and found["network"] == pytest.approx(seconds)
    assert hand[0] <= 1.5 * budget or passed[0] < 12


def test_the_peak_excludes_other_processes() -> None:
    code = (
        "import numpy as np; from cxlp.utils.profiling import peak_memory; before = peak_memory()['peak_bytes'];"
        "x = np.ones(50_000_000); del x; print(peak_memory()['peak_bytes'] - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert 350e6 < int(done.stdout) < 450e6  # 400 MB, although they have been freed
