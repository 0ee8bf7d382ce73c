"""The HTML report of a run, built from the files in the run's folder."""

import base64
import csv
import io
import json
import re
from collections.abc import Iterable, Mapping
from functools import partial, reduce
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from cxlp.reports.charts import Chart, line_chart
from cxlp.reports.formatting import readable
from cxlp.reports.history import curves, wandb_command
from cxlp.utils.files import write_whole
from cxlp.utils.spelling import as_text, interval_as_text, number, shown_names

#: Keys of the config that are shown for every run; ``GRADIENT_KEYS`` are shown for runs with gradient descent.
KEYS = (
    "model.backbone.name", "model.backbone.layers", "model.backbone.weights", "model.test_views.kind", "model.frozen.c",
    "data.init_args.root", "data.init_args.batch_size", "data.init_args.validation", "trainer.max_epochs",
    "trainer.precision", "seed_everything",
)  # fmt: skip
GRADIENT_KEYS = ("model.start", "model.closing_fit", "model.optimizer.name", "model.optimizer.backbone_lr")
#: Maximum numbers of precision-recall curves, of rows of a table, and of bytes of a picture embedded in the page.
CURVES, ROWS, PICTURE = 40, 1000, 1_000_000
_JINJA = Environment(
    loader=PackageLoader(str(__package__), ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)


def _is_numeric(rows: Iterable[Mapping[str, str]], column: str) -> bool:
    """Return whether a column contains only numbers, percentages and intervals of them, apart from empty cells."""
    cells = [str(row[column]) for row in rows if row[column] not in ("", None)]
    return bool(cells) and all(re.match(r"<?[-+]?[\d.,]+(e[-+]?\d+)?%?( to [-+]?[\d.]+%?)?$", cell) for cell in cells)


_JINJA.filters["is_numeric"] = _is_numeric


def render(template: str, **values: Any) -> str:
    """Render one of the templates in this folder."""
    return _JINJA.get_template(template).render(**values)


def write_report(folder: Path) -> None:
    """Write ``report.html``, the result of :func:`build_page`, into a run's folder."""
    write_whole(folder / "report.html", build_page(folder))


def build_page(folder: Path) -> str:
    """Return the report of a finished run. Sections whose files are missing are left out.

    Args:
        folder: A run's folder, which must contain ``metrics.json``.
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
    metrics = {name: as_text(name, value) for name, value in found["metrics"].items() if value is not None}
    intervals = {name: interval_as_text(name, interval) for name, interval in found.get("intervals", {}).items()}
    refit = found.get("refit", {})
    validated = refit.pop("validated", {})
    refit |= {f"there, {name}": as_text(name, value) for name, value in validated.items() if value is not None}
    speeds = {phase: f"{speed:.1f}" for phase, speed in found.get("images_per_second", {}).items()}
    times = [
        {"phase": phase, "seconds": f"{spent:.1f}", "images per second": speeds.get(phase, "")}
        for phase, spent in found["seconds"].items()
    ]
    sizes = {k.replace("_", " ").replace("bytes", "memory"): f"{v / 1e6:,.0f} MB" for k, v in found["memory"].items()}
    sizes |= {f"cost: {name}": number(value) for name, value in found.get("cost", {}).items() if value is not None}
    per_class = _records(folder / "per_class.csv")
    classes = [row["class"] for row in per_class]
    texts = partial(readable, classes=classes)
    examples = texts(_records(folder / "examples.csv"))
    return render(
        "page.html",
        folder=folder.resolve(),
        subtitle=subtitle,
        tiles=[
            (key.replace("_", " "), metrics[key], intervals.get(key))
            for split, last in product(("test/", "val/"), (False, True))
            for key in metrics
            if key.startswith(split) and key.endswith("loss") == last
        ],
        figures=metrics | {f"{name}, 95% interval": text for name, text in intervals.items()},
        refit=refit,
        times=times,
        sizes=sizes,
        setup={key: value for key, value in setup.items() if value is not None},
        config=_text(folder / "config.yaml"),
        charts=_curves(folder, found["images"].get("train", 0), found.get("epoch")),
        examples=[row | {"source": _picture(folder, f"examples/{row['picture']}")} for row in examples],
        confusion_matrix=_drawing(folder, "confusion_matrix.png"),
        confusions=texts(_records(folder / "confusions.csv")),
        average_precision=_drawing(folder, "average_precision.png"),
        precisions=_precisions(folder, dict(zip(classes, shown_names(classes), strict=True))),
        per_class=texts(per_class),
        look=wandb_command(folder),
        most_rows=ROWS,
    )


def _curves(folder: Path, train_images: int, tested: float | None) -> list[Chart | None]:
    """Draw the curves of fine-tuning; a run without gradient descent has none."""
    series = curves(folder, train_images)
    if not any(key.startswith("train/loss") for key in series):
        return []

    def chosen(start: str) -> dict[str, list[tuple[float, float]]]:
        found = {key.removeprefix(start): points for key, points in sorted(series.items()) if key.startswith(start)}
        return {key.replace("_", " "): points for key, points in found.items()}

    quality = chosen("val/")
    losses = {
        "training, by step": series.get("train/loss_step", []),
        "training, mean of the epoch": series.get("train/loss_epoch", []),
        "validation": quality.pop("loss", []),
    }
    # The weights and the biases of a part have the same learning rate.
    rates = {k.partition("/")[2]: points for k, points in chosen("lr-").items() if not k.endswith("/no decay")}
    chart = partial(line_chart, x_label="epoch", tested=tested)
    return [
        chart("Loss", losses),
        chart("Validation", quality, parts=True),
        chart("Learning rates", rates, log=True),
        chart("Gradient norms", chosen("grad_norm/"), log=True),
        line_chart("Images per second", {"training": series.get("train/images_per_second", [])}, "epoch"),
    ]


def _precisions(folder: Path, spelled: Mapping[str, str]) -> list[Chart | None]:
    """Draw the precision-recall curves of the first classes, which have the lowest average precision."""
    rows = {row.pop("class"): row for row in _records(folder / "precision_recall.csv")}
    lines = {name: [(float(r), float(p)) for r, p in rows[name].items()] for name in spelled if name in rows}
    return [
        line_chart(spelled[name], {"precision at full recall": points}, "recall", limits=(0, 1), parts=True)
        for name, points in list(lines.items())[:CURVES]
    ]


def _picture(folder: Path, name: str) -> str:
    """Return a picture as a data URL, as its file name if it is too large, or as "" if it is missing."""
    path = folder / name
    if not path.is_file():
        return ""
    data = path.read_bytes()
    media = "png" if path.suffix == ".png" else "jpeg"
    return name if len(data) > PICTURE else f"data:image/{media};base64,{base64.b64encode(data).decode()}"


def _drawing(folder: Path, name: str) -> tuple[str, int]:
    """Return a drawing's source from :func:`_picture`, and its width in pixels."""
    source = _picture(folder, name)
    if not source:
        return "", 0
    with Image.open(folder / name) as image:
        return source, image.width


def _records(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(_text(path))))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _at(config: Any, key: str) -> Any:  # noqa: ANN401 (a config's part)
    """Return the value of a dotted key; ``None`` if it is missing."""
    return reduce(lambda part, name: part.get(name) if isinstance(part, dict) else None, key.split("."), config)
