"""The layout of a wandb project: which panels its workspace has, and in which order.

Built with wandb-workspaces (``pip install 'cxlp[dashboard]'``), which is imported only where it is used. Panels are of
the keys that runs log, see :mod:`cxlp.runs.wandb_runs`; a panel is empty where no run has logged its keys.
"""

import os
from typing import TYPE_CHECKING, Any

import wandb

from cxlp.runs.wandb_runs import AXES, has_wandb_key
from cxlp.utils.errors import CxlpError

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

#: The groups of parameters, as rates and gradient norms are logged of them; parts of the backbone by their number.
_PARTS = "(backbone|projection|classifier)(/[0-9]+)?$"
#: The columns beside the names of the runs. In wandb, a curve's best value is that of a key within its summary.
COLUMNS = (
    "test/accuracy", "test/accuracy_low", "test/accuracy_high", "test/mAP", "test/mAP_low", "test/mAP_high",
    "val/accuracy.max", "val/mAP.max", "tested/epoch",
)  # fmt: skip


def sections() -> "list[Section]":
    """Make the sections, those on top first."""
    from wandb_workspaces.reports.v2.interface import BarPlot, LinePlot, MediaBrowser, WeavePanelSummaryTable
    from wandb_workspaces.workspaces import Section

    def lines(title: str, *keys: str, over: str, **more: Any) -> LinePlot:
        return LinePlot(title=title, x=over, y=list(keys), **more)

    epochs, images, cost = AXES["val/*"], AXES["train/*"], AXES["frozen/cv_*"]
    return [
        Section(
            "Validation",
            [
                lines("Accuracy, mAP of held-out images", "val/accuracy", "val/mAP", over=epochs),
                lines("Mean accuracy over classes", "val/mean_class_accuracy", over=epochs),
                lines("Loss of held-out images", "val/loss", over=epochs),
            ],
            is_open=True,
        ),
        Section(
            "Test",
            [
                BarPlot(title="Accuracy, mAP of test images", metrics=["test/accuracy", "test/mAP"]),
                MediaBrowser(
                    title="Class by class",
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
    """Make a workspace that is saved nowhere yet."""
    from wandb_workspaces.workspaces import RunsetSettings, Workspace, WorkspaceSettings

    columns = RunsetSettings(pinned_columns=[f"summary:{column}" for column in COLUMNS])
    settings = WorkspaceSettings(max_runs=20)
    return Workspace(entity, project, name, sections(), settings=settings, runset_settings=columns)


def save(project: str, entity: str | None, name: str, url: str | None = None) -> str:
    """Save the layout as a view of a project; nothing is ever asked.

    Args:
        project: The wandb project.
        entity: Whose it is; ``None``: the user's default.
        name: The view's.
        url: Of a view that is given the layout; ``None``: a new one.

    Returns:
        The view's address.

    Raises:
        CxlpError: If wandb-workspaces is missing, wandb is offline or finds no key, or the server refuses.
    """
    mode = os.environ.get("WANDB_MODE")
    if mode in ("offline", "dryrun", "disabled"):
        raise CxlpError(f"WANDB_MODE is {mode}, but a workspace is kept by wandb's server: set it to online")
    if not has_wandb_key():
        raise CxlpError(
            "a workspace is kept by wandb's server, and there is no key for it: wandb login, or set WANDB_API_KEY"
        )
    try:
        from wandb_workspaces.workspaces import Workspace
    except ImportError as error:
        raise CxlpError(f"it takes wandb-workspaces ({error}): pip install 'cxlp[dashboard]'") from error
    try:
        if url is None:
            saved = workspace(entity or wandb.Api(timeout=20).default_entity or "", project, name)
        else:
            saved = Workspace.from_url(url)
            made = workspace(saved.entity, saved.project, saved.name)
            saved.sections, saved.settings, saved.runset_settings = made.sections, made.settings, made.runset_settings
        saved.save()  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever the network, the server and wandb's own checks come to
        said = " ".join(str(error).split()) or type(error).__name__
        raise CxlpError(f"wandb cannot save the workspace of {url or project}: {said[:300]}") from error
    return str(saved.url)
