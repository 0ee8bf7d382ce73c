"""The layout of a wandb workspace: its panels and their order.

The layout is built with wandb-workspaces (``pip install 'cxlp[dashboard]'``), which is imported only when needed. The
panels show the keys that runs log, see :mod:`cxlp.runs.wandb_runs`; a panel is empty if no run has logged its keys.
"""

import os
from typing import TYPE_CHECKING, Any

import wandb

from cxlp.runs.wandb_runs import AXES, has_wandb_key
from cxlp.utils.errors import CxlpError

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

#: Names of the parameter groups in logged learning rates and gradient norms; parts of the backbone are numbered.
_PARTS = "(backbone|projection|classifier)(/[0-9]+)?$"
#: The pinned columns of the run table. wandb stores a curve's best value under a key of the curve's summary.
COLUMNS = (
    "test/accuracy", "test/accuracy_low", "test/accuracy_high", "test/mAP", "test/mAP_low", "test/mAP_high",
    "val/accuracy.max", "val/mAP.max", "tested/epoch",
)  # fmt: skip


def sections() -> "list[Section]":
    """Build the sections, from top to bottom."""
    from wandb_workspaces.reports.v2.interface import BarPlot, LinePlot, MediaBrowser, WeavePanelSummaryTable
    from wandb_workspaces.workspaces import Section

    def lines(title: str, *keys: str, over: str, **more: Any) -> LinePlot:
        return LinePlot(title=title, x=over, y=list(keys), **more)

    epochs, images, cost = AXES["val/*"], AXES["train/*"], AXES["frozen/cv_*"]
    return [
        Section(
            "Validation",
            [
                lines("Accuracy and mAP on held-out images", "val/accuracy", "val/mAP", over=epochs),
                lines("Mean class accuracy", "val/mean_class_accuracy", over=epochs),
                lines("Loss on held-out images", "val/loss", over=epochs),
            ],
            is_open=True,
        ),
        Section(
            "Test",
            [
                BarPlot(title="Accuracy and mAP on test images", metrics=["test/accuracy", "test/mAP"]),
                MediaBrowser(
                    title="Results by class",
                    media_keys=["test/confusion_matrix", "test/average_precision"],
                    num_columns=1,
                ),
                MediaBrowser(title="Mistakes", media_keys=["test/mistakes"], num_columns=4),
                WeavePanelSummaryTable(table_name="test/predictions"),
            ],
            is_open=True,
        ),
        Section(
            "Training",
            [
                lines("Loss", "train/loss_step", "train/loss_epoch", over=images),
                lines("Learning rates", over=images, metric_regex=f"lr-[A-Za-z]+/{_PARTS}"),
                lines("Gradient norms", over=images, metric_regex=f"grad_norm/{_PARTS}", log_y=True),
                lines("Images per second", "train/images_per_second", over=images),
            ],
            is_open=True,
        ),
        Section(
            "Frozen fit",
            [
                lines(
                    "Cross-validation over C", "frozen/cv_accuracy", "frozen/cv_mAP", over=cost, log_x=True, title_x="C"
                )
            ],
            is_open=True,
        ),
        Section(
            "Tables",
            [WeavePanelSummaryTable(table_name=f"test/{name}") for name in ("per_class", "confusions", "examples")],
        ),
    ]


def workspace(entity: str, project: str, name: str) -> "Workspace":
    """Build a workspace without saving it."""
    from wandb_workspaces.workspaces import RunsetSettings, Workspace, WorkspaceSettings

    columns = RunsetSettings(pinned_columns=[f"summary:{column}" for column in COLUMNS])
    settings = WorkspaceSettings(max_runs=20)
    return Workspace(entity, project, name, sections(), settings=settings, runset_settings=columns)


def save(project: str, entity: str | None, name: str, url: str | None = None) -> str:
    """Save the layout as a view of a wandb project, without prompting.

    Args:
        project: The wandb project.
        entity: Owner of the project; ``None``: the user's default entity.
        name: Name of the view.
        url: URL of an existing view to overwrite with this layout; ``None``: create a new view.

    Returns:
        The URL of the view.

    Raises:
        CxlpError: If wandb-workspaces is missing, wandb is offline or has no API key, or the server reports an error.
    """
    mode = os.environ.get("WANDB_MODE")
    if mode in ("offline", "dryrun", "disabled"):
        raise CxlpError(f"WANDB_MODE is {mode}, but workspaces are stored on wandb's server: set WANDB_MODE to online")
    if not has_wandb_key():
        raise CxlpError(
            "workspaces are stored on wandb's server, but no API key was found: run wandb login, or set WANDB_API_KEY"
        )
    try:
        from wandb_workspaces.workspaces import Workspace
    except ImportError as error:
        raise CxlpError(f"the dashboard needs wandb-workspaces ({error}): pip install 'cxlp[dashboard]'") from error
    try:
        if url is None:
            saved = workspace(entity or wandb.Api(timeout=20).default_entity or "", project, name)
        else:
            saved = Workspace.from_url(url)
            made = workspace(saved.entity, saved.project, saved.name)
            saved.sections, saved.settings, saved.runset_settings = made.sections, made.settings, made.runset_settings
        saved.save()  # type: ignore[no-untyped-call]
    except Exception as error:  # any exception of the network, the server or wandb's own checks
        said = " ".join(str(error).split()) or type(error).__name__
        raise CxlpError(f"wandb cannot save the workspace of {url or project}: {said[:300]}") from error
    return str(saved.url)
