"""wandb runs: online or offline mode, axes of curves, and the summary."""

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

#: The user's folder for files that wandb stages for upload.
DATA_DIR = os.environ.get("WANDB_DATA_DIR")
#: Job type of a wandb run: a run, the second run of a refit, or a comparison of several runs.
JobType = Literal["train", "refit", "compare"]
#: Horizontal axes of curves: images seen for training, epochs for validation, C for cross-validation.
AXES = {
    "train/*": "images_seen", "lr-*": "images_seen", "grad_norm/*": "images_seen", "val/*": "epoch",
    "frozen/cv_*": "frozen/C",
}  # fmt: skip


#: Keys of a frozen fit that belong to a single value of C.
AT_COST = re.compile(r"(frozen/cv_\w+?)_C([\d.e+-]+)")


def has_wandb_key() -> bool:
    """Whether wandb can log in without prompting, with an API key from the environment or the netrc file.

    wandb's own check prompts on a terminal and fails elsewhere.
    """
    if os.environ.get("WANDB_API_KEY"):
        return True
    # Ask wandb for the host, which comes from WANDB_BASE_URL, wandb's settings file or a default that has changed
    # before. (A new wandb.Settings would not read them.) netrc entries of wandb include the port.
    host = urlparse(wandb.setup().settings.base_url).netloc
    # wandb's service has moved: also accept a key that is stored under the earlier host name
    hosts = [host, "api.wandb.ai"] if host.endswith(".coreweave.com") else [host]
    file = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        found = [netrc.netrc(str(file)).authenticators(host) for host in hosts]
    except (OSError, UnicodeError, netrc.NetrcParseError):
        return False
    return any(entry is not None and entry[2] for entry in found)


def wandb_id_of(run: "RunConfig", known: str | None) -> str | None:
    """The ID of a run in wandb, known before the wandb run starts; ``None`` if wandb is off.

    Args:
        run: The user's options.
        known: The ID of a resumed run.
    """
    if _mode(run) in ("off", "disabled"):
        return None
    return known or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)


def _mode(run: "RunConfig") -> str | None:
    return os.environ.get("WANDB_MODE") if run.wandb == "auto" else run.wandb


def start_wandb(run: "RunConfig", folder: Path, job: JobType, wandb_id: str | None = None) -> wandb.Run | None:
    """Start a wandb run; return ``None`` if wandb is off.

    Args:
        run: The user's options.
        folder: The run's folder.
        job: The job type. wandb can filter and group runs by it.
        wandb_id: ID of the wandb run to resume; ``None``: start a new one.
    """
    mode = _mode(run)
    if mode in ("off", "disabled"):
        return None
    # dryrun is wandb's former name of offline
    offline = mode in ("offline", "dryrun") or (mode != "online" and not has_wandb_key())
    return _start_wandb(run, folder, job, wandb_id, offline)


def _start_wandb(run: "RunConfig", folder: Path, job: JobType, wandb_id: str | None, offline: bool) -> wandb.Run:
    """Start or resume a wandb run; use offline mode if the server does not respond or rejects the key."""
    # An ID in the environment, as from a sweep's agent, is for the first run only, even if that run has an ID already.
    given = os.environ.pop("WANDB_RUN_ID", None)
    wandb_id = wandb_id or given or secrets.token_hex(4)
    # wandb stages tables and checkpoints for upload: use the run's folder, since HOME may not be writable.
    os.environ["WANDB_DATA_DIR"] = DATA_DIR or str(folder.absolute() / "wandb")
    try:
        started = wandb.init(
            dir=folder.absolute(),  # absolute: wandb's service keeps the first run's working directory
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
    """Define the default horizontal axes of curves, and which value of a curve the summary contains.

    The summary contains the best values of validation curves, such as ``val/accuracy.max`` and ``val/loss.min``, and
    the last values of other curves.
    """
    for names, axis in AXES.items():
        best: dict[str, Any] = {"summary": "max"} if names.startswith("val/") else {}
        run.define_metric(names, step_metric=axis, step_sync=True, **best)
    run.define_metric("val/loss", step_metric=AXES["val/*"], step_sync=True, summary="min")
    for axis in sorted(set(AXES.values())):  # axes are not shown as curves
        run.define_metric(axis, hidden=True)


def curve_of_costs(found: Mapping[str, float]) -> list[dict[str, float]]:
    """Extract rows of C and cross-validated score from a frozen fit's values, sorted by C."""
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
        run: The wandb run.
        summary: The content of ``metrics.json``, see :func:`summary_of`.
        checkpoint: Path of the checkpoint to upload as an artifact if the run is online; ``None``: upload nothing.
    """
    found = summary_of(summary)
    run.summary.update(found)
    if checkpoint is not None and not run.offline:
        artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata=found)
        artifact.add_file(checkpoint)
        run.log_artifact(artifact, aliases=["tested"])
    run.finish()


def summary_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the content of ``metrics.json`` to a flat summary for wandb.

    ``test/...`` contains the test's metrics, and the bounds of 95 % intervals as ``test/accuracy_low`` and
    ``test/accuracy_high``. ``tested/...`` contains the tested checkpoint, its epoch and its validation metrics;
    ``val/...`` is not set, since it contains the best values of the curves. Values for a single C are omitted, since
    they form a curve.
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
