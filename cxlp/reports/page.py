"""The page, built of the files in a run's folder."""

import csv
import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import yaml

from cxlp.reports.charts import Points, line_chart
from cxlp.reports.history import history, how_to_look
from cxlp.reports.html import facts, folded, picture, section, table, tiles
from cxlp.reports.style import SCRIPT, STYLE
from cxlp.utils.files import write_whole

#: What lies in a run's folder, for people.
FILES = {
    "config.yaml": "all keys resolved: --config on it runs the same again",
    "config-resumed.yaml": "the config of the last resumption",
    "metrics.json": "figures, times, memory",
    "provenance.json": "commit, versions, data, machine",
    "provenance-resumed.json": "the same of the last resumption",
    "checkpoints": "best.ckpt and last.ckpt",
    "per_class.csv": "the test, class by class",
    "confusions.csv": "what is taken for what",
    "confusion_matrix.png": "the confusion matrix",
    "precision_recall.csv": "precision at each recall, by class",
    "average_precision.png": "average precision, by class",
    "examples.csv": "the worst mistakes and some right answers, with the images' paths",
    "examples": "their thumbnails",
    "csv": "the curves",
    "wandb": "the same for wandb",
}

#: What stands beside an example's picture.
EVIDENCE = (
    "Beside a picture, where the network can be explained: the evidence for the answer and, of a mistake, for the "
    "truth. Red speaks for it, blue against it, each map by its own strongest place."
)
#: Most curves of precision over recall.
CURVES = 40


def write_report(folder: Path) -> None:
    """Write ``report.html`` into a run's folder, of what lies there."""
    write_whole(folder / "report.html", build_page(folder))


def build_page(folder: Path) -> str:
    """Build the page of a finished run; whatever file a kind of run does not write is left out.

    Args:
        folder: A run's, with ``metrics.json``.
    """
    found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    config = _yaml(folder / "config-resumed.yaml") or _yaml(folder / "config.yaml")
    origin = json.loads(_text(folder / "provenance.json") or "{}")
    metrics = {k: v for k, v in found["metrics"].items() if v is not None}
    name = folder.resolve().name
    body = [
        f'<h1>{escape(name)}</h1><p class="soft">{escape(_subtitle(config, origin, found))}</p>',
        f'<section class="tiles">{tiles(_headline(metrics))}</section>',
        section("Refit", facts(_refit(found))),
        section("Fine-tuning", _curves(folder, found["images"]["train"])),
        section("What it gets wrong, the worst first", _examples(folder, "mistake")),
        section("What it gets right, the surest first", _examples(folder, "right")),
        section("Confusions", _confusions(folder)),
        section("Precision and recall", _precisions(folder)),
        section("By class", _per_class(folder)),
        section("Time and memory", _times(found)),
        section("All figures", facts({k: f"{v:.6g}" for k, v in metrics.items()})),
        section("How it was run", _setup(folder, config, origin)),
        section("Where things are", _files(folder)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)}</title><style>{STYLE}</style></head>\n<body>{chr(10).join(filter(None, body))}"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _refit(found: dict[str, Any]) -> dict[str, str]:
    """How the epoch was chosen after which a refit ended."""
    if "refit" not in found:
        return {}
    validated = {f"there, {k}": f"{v:.4g}" for k, v in found["refit"]["validated"].items()}
    return {"epoch": str(found["refit"]["epoch"]), "chosen by": str(found["refit"]["chosen by"]), **validated}


def _subtitle(config: dict[str, Any], origin: dict[str, Any], found: dict[str, Any]) -> str:
    """One line: the data, how many images, the network, the mode, what was tested."""
    network = _at(config, "model.init_args.network") or {}
    parts = [
        origin.get("data", {}).get("name"),
        ", ".join(f"{n} {split}" for split, n in found["images"].items() if n) + " images",
        str(_at(config, "model.class_path") or "").rpartition(".")[2],
        _at(network, "backbone.name"),
        f"{_at(network, 'pooling.method')} pooling" if _at(network, "pooling.method") else None,
        f"tested: {Path(found['tested']).name}",
    ]
    return " · ".join(str(part) for part in parts if part)


def _headline(metrics: Mapping[str, float]) -> dict[str, str]:
    """The test's figures, then those of validation, by their names as people read them."""
    shown = {k: v for k, v in metrics.items() if k.startswith(("test/", "val/"))}
    order = sorted(shown, key=lambda key: (key.startswith("val/"), key.endswith("loss")))
    return {
        key.replace("_", " "): f"{shown[key]:.4g}" if key.endswith("loss") else f"{shown[key]:.2%}" for key in order
    }


# --- curves -------------------------------------------------------------------------------------------


def _curves(folder: Path, train_images: int) -> str:
    rows = history(folder)
    if not any(key.startswith("train/loss") for row in rows for key in row):
        return ""
    passes = 0.0
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        passes = row.get("images_seen", passes * train_images) / max(1, train_images)
        for key, value in row.items():
            series.setdefault(key, []).append((passes, value))

    def chosen(*prefixes: str, cut: str = "") -> dict[str, Points]:
        return {k.removeprefix(cut): v for k, v in sorted(series.items()) if k.startswith(prefixes)}

    losses = {"training": "train/loss_step", "training, epoch's mean": "train/loss_epoch", "validation": "val/loss"}
    quality = {k: v for k, v in chosen("val/", cut="val/").items() if k != "loss"}
    # A part's weights and biases have one rate.
    rates = {k.partition("/")[2]: v for k, v in chosen("lr-").items() if not k.endswith("/no_decay")}
    axis = "passes over the training images"
    charts = [
        line_chart("Loss", {name: series.get(key, []) for name, key in losses.items()}, axis),
        line_chart("Validation", quality, axis),
        line_chart("Learning rates", rates, axis, log=True),
        line_chart("Gradient norms", chosen("grad_norm/", cut="grad_norm/"), axis, log=True),
        line_chart("Images per second", chosen("train/images_per_second", cut="train/"), axis),
    ]
    return f'<div class="grid">{"".join(charts)}</div>'


# --- the test -----------------------------------------------------------------------------------------


def _examples(folder: Path, kind: str) -> str:
    shown = []
    for row in _records(folder / "examples.csv"):
        if row["kind"] != kind:
            continue
        image = picture(folder / "examples" / row["picture"], f"{row['image']}")
        said = f'<b class="{"wrong" if kind == "mistake" else "right"}">{escape(row["answered"])}</b>'
        truth = f"<br>is: {escape(row['true'])}" if kind == "mistake" else ""
        shown.append(
            f'<figure title="{escape(row["image"])}">{image}'
            f"<figcaption>{said} {float(row['probability']):.0%}{truth}</figcaption></figure>"
        )
    if not shown:
        return ""
    return f'<p class="soft">{EVIDENCE}</p><div class="examples">{"".join(shown)}</div>'


def _confusions(folder: Path) -> str:
    rows = _records(folder / "confusions.csv")
    image = _large(folder / "confusion_matrix.png", "confusion matrix")
    pairs = table(list(rows[0]), [list(row.values()) for row in rows]) if rows else ""
    return f'<div class="grid"><div>{image}</div><div>{pairs}</div></div>' if image else ""


def _precisions(folder: Path) -> str:
    """Curves of the classes of lowest average precision, which come first in ``per_class.csv``."""
    curves = {row.pop("class"): row for row in _records(folder / "precision_recall.csv")}
    worst = [row["class"] for row in _records(folder / "per_class.csv") if row["class"] in curves][:CURVES]
    charts = [
        line_chart(name, {"precision at full recall": points}, "recall", limits=(0, 1))
        for name, points in ((name, [(float(r), float(p)) for r, p in curves[name].items()]) for name in worst)
    ]
    image = _large(folder / "average_precision.png", "average precision by class")
    return f'{image}<div class="grid small">{"".join(charts)}</div>' if curves else ""


def _large(path: Path, description: str) -> str:
    image = picture(path, description, "picture")
    return image and f'<a href="{escape(path.name)}">{image}</a>'


def _per_class(folder: Path) -> str:
    rows = _records(folder / "per_class.csv")
    if not rows:
        return ""
    columns = list(rows[0])
    bar = "accuracy" if "accuracy" in columns else columns[-1]
    return table(columns, [list(row.values()) for row in rows], bar)


# --- the run ------------------------------------------------------------------------------------------


def _times(found: dict[str, Any]) -> str:
    speeds = found.get("images_per_second", {})
    rows = [
        [phase, f"{spent:.1f}", f"{speeds[phase]:.1f}" if phase in speeds else ""]
        for phase, spent in found["seconds"].items()
    ]
    sizes = {
        f"{key.replace('_', ' ').replace('bytes', 'memory')}": f"{v / 1e6:,.0f} MB"
        for key, v in found["memory"].items()
    }
    costs = {f"cost: {key}": f"{value:.4g}" for key, value in found.get("cost", {}).items()}
    return table(["phase", "seconds", "images per second"], rows) + facts(sizes | costs)


def _setup(folder: Path, config: dict[str, Any], origin: dict[str, Any]) -> str:
    keys = (
        "model.class_path", "model.init_args.start", "model.init_args.network.backbone.name",
        "model.init_args.network.backbone.layers", "model.init_args.network.backbone.weights",
        "model.init_args.network.pooling.method", "model.init_args.network.pooling.pca_dim",
        "model.init_args.frozen.c", "model.init_args.optimizer.name", "model.init_args.optimizer.backbone_lr",
        "data.init_args.root", "data.init_args.batch_size", "data.init_args.validation", "trainer.max_epochs",
        "trainer.precision", "seed_everything",
    )  # fmt: skip
    values = {key.replace("init_args.", ""): _at(config, key) for key in keys}
    shown = {key: str(value) for key, value in values.items() if value is not None}
    for part in ("data", "git", "versions", "machine"):
        known = (origin.get(part) or {}).items()
        if known:
            shown[part] = ", ".join(f"{k} {v}" for k, v in known)
    return facts(shown) + folded("the whole config", _text(folder / "config.yaml"))


def _files(folder: Path) -> str:
    there = [
        f'<dt><a href="{escape(name)}">{escape(name)}</a></dt><dd>{escape(what)}</dd>'
        for name, what in FILES.items()
        if (folder / name).exists()
    ]
    look = how_to_look(folder)
    more = f"<p>{escape(str(folder.resolve()))}</p>" + (f"<p><code>{escape(look)}</code></p>" if look else "")
    return f"<dl>{''.join(there)}</dl>{more}"


def _records(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _yaml(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(_text(path))
    return content if isinstance(content, dict) else {}


def _at(config: Any, key: str) -> Any:  # noqa: ANN401 (a config's part)
    """A value by its dotted key; ``None`` where it is not."""
    for part in key.split("."):
        if not isinstance(config, dict):
            return None
        config = config.get(part)
    return config
