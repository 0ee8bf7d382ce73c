"""Wandb runs: when they are online, what curves are drawn over, and what is in the summary."""

import netrc
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlparse

import wandb

from cxlp.runs.places import REFIT

if TYPE_CHECKING:
    from cxlp.runs.loggers import RunConfig

#: Where the user has wandb gather what it uploads.
DATA_DIR = os.environ.get("WANDB_DATA_DIR")
#: What a wandb run is of: a run, the second one of a refit, or the table of several runs.
JobType = Literal["train", "refit", "compare"]
#: What the horizontal axes are: training over the images seen, validation over epochs, cross-validation over C.
AXES = {
    "train/*": "images_seen", "lr-*": "images_seen", "grad_norm/*": "images_seen", "val/*": "epoch",
    "frozen/cv_*": "frozen/C",
}  # fmt: skip


#: Of a frozen fit's values, those of one C.
AT_COST = re.compile(r"(frozen/cv_\w+?)_C([\d.e+-]+)")


def has_wandb_key() -> bool:
    """Whether wandb could log in without asking: a key in the environment or in the netrc file.

    Asking wandb itself prompts on a terminal and crashes elsewhere.
    """
    if os.environ.get("WANDB_API_KEY"):
        return True
    # wandb knows the host: from WANDB_BASE_URL, its settings file, or its own default, which has changed before.
    # (A fresh wandb.Settings would not have read them.) With its port: so wandb files it.
    host = urlparse(wandb.setup().settings.base_url).netloc
    # wandb's own service has moved: a key that is filed under its earlier name still counts
    hosts = [host, "api.wandb.ai"] if host.endswith(".coreweave.com") else [host]
    file = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        found = [netrc.netrc(str(file)).authenticators(host) for host in hosts]
    except (OSError, UnicodeError, netrc.NetrcParseError):
        return False
    return any(entry is not None and entry[2] for entry in found)


def wandb_id_of(run: "RunConfig", known: str | None) -> str | None:
    """The id that a run has in wandb, which it may begin later; ``None`` where wandb is off.

    Args:
        run: What the user asked for.
        known: The id that it has already, on resume.
    """
    if _mode(run) in ("off", "disabled"):
        return None
    return known or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)


def _mode(run: "RunConfig") -> str | None:
    return os.environ.get("WANDB_MODE") if run.wandb == "auto" else run.wandb


def start_wandb(run: "RunConfig", folder: Path, job: JobType, wandb_id: str | None = None) -> wandb.Run | None:
    """Start a wandb run; ``None`` where it is off.

    Args:
        run: What the user asked for.
        folder: The run's folder.
        job: Its type of job, by which wandb filters and groups.
        wandb_id: The wandb run to continue, on resume; ``None``: a new one.
    """
    mode = _mode(run)
    if mode in ("off", "disabled"):
        return None
    # dryrun is wandb's older word for offline
    offline = mode in ("offline", "dryrun") or (mode != "online" and not has_wandb_key())
    return _start_wandb(run, folder, job, wandb_id, offline)


def _start_wandb(run: "RunConfig", folder: Path, job: JobType, wandb_id: str | None, offline: bool) -> wandb.Run:
    """Start or continue a wandb run; offline where the server does not answer or refuses the key."""
    # The id in the environment, as of a sweep's agent, is one run's: the first one's, also where that has one already.
    given = os.environ.pop("WANDB_RUN_ID", None)
    wandb_id = wandb_id or given or secrets.token_hex(4)
    # Where wandb gathers tables and checkpoints before it uploads them: with the run, since HOME may not be writable.
    os.environ["WANDB_DATA_DIR"] = DATA_DIR or str(folder.absolute() / "wandb")
    try:
        started = wandb.init(
            dir=folder.absolute(),  # wandb's own process stays where the first run of this one began
            name=f"{folder.parent.name}-{REFIT}" if folder.name == REFIT else folder.name,
            project=run.project,
            group=run.group,
            tags=run.tags,
            notes=run.notes,
            job_type=job,
            id=wandb_id,
            resume="allow",
            mode="offline" if offline else "online",
            settings=wandb.Settings(init_timeout=30),
        )
        _define_metrics(started)
        return started
    except wandb.Error as error:
        if offline:
            raise
        print(f"wandb cannot be started online, logging offline: {str(error).partition(chr(10))[0]}")  # noqa: T201
        return _start_wandb(run, folder, job, wandb_id, offline=True)


def _define_metrics(run: wandb.Run) -> None:
    """Say what curves are drawn over (in wandb's panels it can be chosen), and that the summary has their best values.

    The summary has ``val/accuracy.max`` and the like, ``val/loss.min``; of other curves the last value.
    """
    for names, axis in AXES.items():
        best: dict[str, Any] = {"summary": "max"} if names.startswith("val/") else {}
        run.define_metric(names, step_metric=axis, step_sync=True, **best)
    run.define_metric("val/loss", step_metric=AXES["val/*"], step_sync=True, summary="min")
    for axis in sorted(set(AXES.values())):  # no curves of their own
        run.define_metric(axis, hidden=True)


def curve_of_costs(found: Mapping[str, float]) -> list[dict[str, float]]:
    """Make rows of C and cross-validated quality, C ascending, of a frozen fit's values; it may have tried one only."""
    tried = [match for key in found if (match := AT_COST.fullmatch(key))]
    points = [{"frozen/C": float(match[2]), match[1]: found[match[0]]} for match in tried]
    if not points:
        points = [
            {"frozen/C": found["frozen/C"], key: value} for key, value in found.items() if key.startswith("frozen/cv_")
        ]
    return sorted(points, key=lambda point: point["frozen/C"])


def close_wandb(run: wandb.Run, summary: Mapping[str, Any], checkpoint: str | None) -> None:
    """End a wandb run.

    Args:
        run: Which.
        summary: As in ``metrics.json``, see :func:`summary_of`.
        checkpoint: What to upload as an artifact, if the run is online; ``None``: nothing.
    """
    found = summary_of(summary)
    run.summary.update(found)
    if checkpoint is not None and not run.offline:
        artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata=found)
        artifact.add_file(checkpoint)
        run.log_artifact(artifact, aliases=["tested"])
    run.finish()


def summary_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """Make wandb's summary of a ``metrics.json``, one value a key.

    ``test/...`` is the test, with the ends of the 95 % interval in ``test/accuracy_low`` and ``test/accuracy_high``;
    ``tested/...`` the checkpoint that was tested, its epoch and its validation. (``val/...`` is left as it is: the best
    values of the curves.) Values of single C are left out: they are a curve.
    """
    found: dict[str, Any] = {}
    for key, value in results["metrics"].items():
        if not AT_COST.fullmatch(key):
            found[f"tested/{key}" if key.startswith("val/") else key] = value
    for name, interval in results.get("intervals", {}).items():
        found |= {f"{name}_low": interval["low"], f"{name}_high": interval["high"]}
    names = {"tested": "tested/checkpoint", "epoch": "tested/epoch"}
    for name, value in results.items():
        if isinstance(value, Mapping):
            if name not in ("metrics", "intervals"):
                found |= {f"{name}/{key}": part for key, part in value.items()}
        else:
            found[names.get(name, name)] = value
    return found
