"""The layout of a wandb project: its specification, and errors if it cannot be saved."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from cxlp.__main__ import main
from cxlp.runs.dashboard import sections, workspace


@pytest.fixture(autouse=True)
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A user with an API key, who is not prompted."""
    for name in ("WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "settings"))
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("asked the user"))
    wandb.teardown()
    yield
    wandb.teardown()


def specification() -> dict[str, Any]:
    """Record the request to the server."""
    view = workspace("me", "birds", "mine")._to_model()
    found: dict[str, Any] = json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True))
    return found["section"]  # type: ignore[no-any-return]


def test_the_order_of_the_panels_is_sent_to_the_server() -> None:
    bank = specification()["panelBankConfig"]
    assert not bank["settings"]["sortAlphabetically"]
    assert [part["name"] for part in bank["sections"]] == ["Validation", "Test", "Training", "Frozen fit", "Tables"]
    assert [part["isOpen"] for part in bank["sections"]] == [True, True, True, True, False]
    validation, test, training, frozen, tables = (
        [(panel["viewType"], panel["config"]) for panel in part["panels"]] for part in bank["sections"]
    )
    lines = "Run History Line Plot"
    assert [(kind, c["metrics"], c["xAxis"]) for kind, c in validation] == [
        (lines, ["val/accuracy", "val/mAP"], "epoch"),
        (lines, ["val/mean_class_accuracy"], "epoch"),
        (lines, ["val/loss"], "epoch"),
    ]
    assert test[0][0] == "Bar Chart" and test[0][1]["metrics"] == ["test/accuracy", "test/mAP"]
    media = [c["mediaKeys"] for kind, c in test if kind == "Media Browser"]
    assert media == [["test/confusion_matrix", "test/average_precision"], ["test/mistakes"]]
    assert "test/predictions" in json.dumps(test[-1][1])
    loss, rates, norms, speed = (c for _, c in training)
    assert loss["metrics"] == ["train/loss_step", "train/loss_epoch"] and speed["metrics"]
    assert all(c["xAxis"] == "images_seen" for _, c in training)
    assert (
        rates["useMetricRegex"] and norms["useMetricRegex"] and norms["yLogScale"]
    )  # one panel for all metrics of a kind
    ((kind, curve),) = frozen
    assert (kind, curve["xAxis"], curve["metrics"]) == (lines, "frozen/C", ["frozen/cv_accuracy", "frozen/cv_mAP"])
    assert curve["xLogScale"]
    assert [name for name in ("per_class", "confusions", "examples") if f"test/{name}" in json.dumps(tables)] != []
    assert len(tables) == 3


def test_results_are_pinned_columns() -> None:
    (runs,) = specification()["runSets"]
    pinned = [column.removeprefix("summary:") for column in runs["runFeed"]["columnPinned"]]
    assert pinned[:4] == ["run:displayName", "test/accuracy", "test/accuracy_low", "test/accuracy_high"]
    assert "val/accuracy.max" in pinned


def test_the_view_is_saved_and_its_address_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from wandb_workspaces.workspaces import Workspace, internal

    sent: list[Any] = []

    def upsert(view: Any) -> dict[str, Any]:
        sent.append(view)
        return {"upsertView": {"view": {"name": view.name, "id": "7"}}}

    monkeypatch.setattr(internal, "upsert_view2", upsert)
    monkeypatch.setattr(Workspace, "url", property(lambda self: f"https://w/{self.entity}/{self.project}?nw=1"))
    assert main(["dashboard", "--entity", "us", "--project", "birds"]) == 0
    assert capsys.readouterr().out == "https://w/us/birds?nw=1\n"
    assert (sent[0].entity, sent[0].project, sent[0].display_name) == ("us", "birds", "cxlp")

    theirs = Workspace("them", "fish", "old", sections()[:1])
    theirs._internal_name, theirs._internal_id = "nw-abc-v", "9"
    monkeypatch.setattr(Workspace, "from_url", lambda url: theirs)
    assert main(["dashboard", "--url", "https://w/them/fish?nw=abc"]) == 0
    assert (sent[1].id, sent[1].name, sent[1].display_name) == ("9", "nw-abc-v", "old")
    assert len(sent[1].spec.section.panel_bank_config.sections) == len(sections())


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WANDB_MODE": "offline"}, "WANDB_MODE is offline, but workspaces"),
        ({"WANDB_API_KEY": ""}, "wandb login, or set WANDB_API_KEY"),
    ],
)
def test_missing_settings_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variables: dict[str, str], said: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["dashboard"]) == 2
    assert said in capsys.readouterr().err


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    assert main(["dashboard"]) == 2
    assert "pip install 'cxlp[dashboard]'" in capsys.readouterr().err


def test_errors_of_the_server_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(**kwargs: Any) -> None:
        raise wandb.Error("permission\ndenied")

    monkeypatch.setattr(wandb, "Api", refuse)
    assert main(["dashboard", "--project", "birds"]) == 2
    assert capsys.readouterr().err == "error: wandb cannot save the workspace of birds: permission denied\n"
