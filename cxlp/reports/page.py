"""The report page, built from the files in a run's folder."""

import base64
import csv
import io
import json
from collections import defaultdict
from functools import reduce
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from cxlp.reports.charts import Chart, line_chart
from cxlp.reports.formatting import interval_as_text
from cxlp.reports.history import history, how_to_look
from cxlp.utils.files import write_whole

#: Keys of the config that are shown for every run, and for one with gradient epochs.
KEYS = (
    "model.backbone.name", "model.backbone.layers", "model.backbone.weights", "model.test_views.kind", "model.frozen.c",
    "data.init_args.root", "data.init_args.batch_size", "data.init_args.validation", "trainer.max_epochs",
    "trainer.precision", "seed_everything",
)  # fmt: skip
GRADIENT_KEYS = ("model.start", "model.closing_fit", "model.optimizer.name", "model.optimizer.backbone_lr")
#: Most curves of precision over recall, most rows of a table, most bytes of a picture that is put into the page.
CURVES, ROWS, PICTURE = 40, 1000, 1_000_000

_JINJA = Environment(
    loader=PackageLoader(str(__package__), ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)


def render(template: str, **values: Any) -> str:
    """Fill one of this folder's templates."""
    return _JINJA.get_template(template).render(**values)


def write_report(folder: Path) -> None:
    """Write ``report.html`` into a run's folder, see :func:`build_page`."""
    write_whole(folder / "report.html", build_page(folder))


def build_page(folder: Path) -> str:
    """Build the page of a finished run, leaving out whatever files are not there.

    Args:
        folder: A run's folder, with ``metrics.json``.
    """
    found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    origin = json.loads(_text(folder / "provenance.json") or "{}")
    config = yaml.safe_load(_text(folder / "config-resumed.yaml") or _text(folder / "config.yaml"))
    epochs = _at(config, "trainer.max_epochs")
    given = _at(config, "model.head") or []
    heads = given if isinstance(given, list) else [given]
    kept = [_at(head, "init_args.pca_dim") for head in heads]
    setup: dict[str, Any] = {
        "model.head": " + ".join(str(_at(head, "class_path")).rpartition(".")[2] for head in heads) or None,
        "model.head.pca_dim": " + ".join(str(dim) for dim in kept if dim is not None) or None,
    }
    for key in (*KEYS, *(GRADIENT_KEYS if epochs else ())):
        value = _at(config, key)
        setup[key.replace("init_args.", "")] = ", ".join(map(str, value)) if isinstance(value, list) else value
    subtitle = [
        _at(origin, "data.name"),
        ", ".join(f"{n} {split}" for split, n in found["images"].items() if n) + " images",
        setup["model.backbone.name"],
        setup["model.head"],
        config and (f"{epochs} gradient epochs" if epochs else "frozen network"),
        f"tested: {Path(found['tested']).name}",
    ]
    parts = {part: origin.get(part) or {} for part in ("data", "git", "versions", "machine")}
    setup |= {part: ", ".join(f"{k} {v}" for k, v in known.items()) or None for part, known in parts.items()}
    metrics = {name: value for name, value in found["metrics"].items() if value is not None}
    intervals = {name: interval_as_text(name, interval) for name, interval in found.get("intervals", {}).items()}
    refit = found.get("refit", {})
    validated = refit.pop("validated", {})
    refit |= {f"there, {name}": f"{value:.4g}" for name, value in validated.items() if value is not None}
    speeds = {phase: f"{speed:.1f}" for phase, speed in found.get("images_per_second", {}).items()}
    times = [
        {"phase": phase, "seconds": f"{spent:.1f}", "images per second": speeds.get(phase, "")}
        for phase, spent in found["seconds"].items()
    ]
    sizes = {k.replace("_", " ").replace("bytes", "memory"): f"{v / 1e6:,.0f} MB" for k, v in found["memory"].items()}
    sizes |= {f"cost: {name}": f"{value:.4g}" for name, value in found.get("cost", {}).items() if value is not None}
    per_class = _records(folder / "per_class.csv")
    examples = _records(folder / "examples.csv")
    return render(
        "page.html",
        folder=folder.resolve(),
        subtitle=subtitle,
        metrics=metrics,
        figures={name: f"{value:.6g}" for name, value in metrics.items()}
        | {f"{name}, 95% interval": text for name, text in intervals.items()},
        intervals=intervals,
        refit=refit,
        times=times,
        sizes=sizes,
        setup={key: value for key, value in setup.items() if value is not None},
        config=_text(folder / "config.yaml"),
        charts=_curves(folder, found["images"].get("train", 0)),
        examples=[row | {"source": _picture(folder, f"examples/{row['picture']}")} for row in examples],
        confusion_matrix=_picture(folder, "confusion_matrix.png"),
        confusions=_records(folder / "confusions.csv"),
        average_precision=_picture(folder, "average_precision.png"),
        precisions=_precisions(folder, [row["class"] for row in per_class]),
        per_class=per_class,
        look=how_to_look(folder),
        most_rows=ROWS,
    )


def _curves(folder: Path, train_images: int) -> list[Chart | None]:
    """Draw the logs of fine-tuning; a run that only fitted a frozen network has no curves."""
    series = defaultdict[str, list[tuple[float, float]]](list)
    images = 0.0
    for row in history(folder):
        images = row.get("images_seen", images)
        for key, value in row.items():
            series[key].append((images / max(1, train_images), value))
    if not any(key.startswith("train/loss") for key in series):
        return []

    def chosen(start: str) -> dict[str, list[tuple[float, float]]]:
        return {key.removeprefix(start): points for key, points in sorted(series.items()) if key.startswith(start)}

    quality = chosen("val/")
    losses = {
        "training": series["train/loss_step"],
        "training, epoch's mean": series["train/loss_epoch"],
        "validation": quality.pop("loss", []),
    }
    # A part's weights and biases share one rate.
    rates = {k.partition("/")[2]: points for k, points in chosen("lr-").items() if not k.endswith("/no_decay")}
    speed = {"images_per_second": series["train/images_per_second"]}
    axis = "passes over the training images"
    return [
        line_chart("Loss", losses, axis),
        line_chart("Validation", quality, axis),
        line_chart("Learning rates", rates, axis, log=True),
        line_chart("Gradient norms", chosen("grad_norm/"), axis, log=True),
        line_chart("Images per second", speed, axis),
    ]


def _precisions(folder: Path, classes: list[str]) -> list[Chart | None]:
    """Draw the curves of the first classes, which have the lowest average precision."""
    rows = {row.pop("class"): row for row in _records(folder / "precision_recall.csv")}
    curves = {name: [(float(r), float(p)) for r, p in rows[name].items()] for name in classes if name in rows}
    return [
        line_chart(name, {"precision at full recall": points}, "recall", limits=(0, 1))
        for name, points in list(curves.items())[:CURVES]
    ]


def _picture(folder: Path, name: str) -> str:
    """Return a picture as a data URL, its name if it is too large for that, or "" if there is none."""
    path = folder / name
    if not path.is_file():
        return ""
    data = path.read_bytes()
    media = "png" if path.suffix == ".png" else "jpeg"
    return name if len(data) > PICTURE else f"data:image/{media};base64,{base64.b64encode(data).decode()}"


def _records(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(_text(path))))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _at(config: Any, key: str) -> Any:  # noqa: ANN401 (a config's part)
    """Return a value by its dotted key; ``None`` if there is none."""
    return reduce(lambda part, name: part.get(name) if isinstance(part, dict) else None, key.split("."), config)
