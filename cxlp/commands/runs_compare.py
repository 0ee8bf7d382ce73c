"""``cxlp runs compare``: paired tests of finished runs."""

import json
import re
import sys
from argparse import Namespace
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.table import Table

from cxlp.reports.formatting import spread
from cxlp.studies import catalogue
from cxlp.studies.catalogue import Entry
from cxlp.studies.choice import cross_validated
from cxlp.utils.errors import CxlpError, did_you_mean


def compare(args: Namespace) -> int:
    """Run the command with the arguments of :mod:`cxlp.commands.runs`; return the exit status."""
    from cxlp.commands.runs import WIDTH, write_page
    from cxlp.studies.evidence import CHOICE
    from cxlp.studies.paired import NOTE, compare, results_folder

    names = list(dict.fromkeys(args.names[1:]))
    if args.delete or args.filter or args.picture is not None:
        raise CxlpError("runs compare does not accept --delete, --filter and --picture: name the runs")
    if len(names) < 2:
        raise CxlpError("runs compare: name at least two runs")
    reference = names[0] if args.reference is None else args.reference
    if reference not in names:
        raise CxlpError(f"--reference {reference} is not among the compared runs: {', '.join(names)}")
    known = catalogue.find_runs(args.root)
    systems = {name: _runs_of(name, known, args.root) for name in names}
    metrics = {entry.metric for entries in systems.values() for entry in entries}
    if len(metrics) > 1:
        raise CxlpError("some of the runs report accuracy and some mAP: they cannot be compared")
    metric = metrics.pop().removeprefix("test/")
    found = compare({name: [results_folder(e.folder) for e in entries] for name, entries in systems.items()}, reference)
    rows = []
    for name, entries in systems.items():
        row = {"run": name, **_facts(entries, metric)}
        if name == reference:
            row |= {"difference": "reference"}
        else:
            row |= {**found[name].cells, "images": f"{found[name].images:,}", "test": found[name].found.by}
        rows.append(row)
    columns = dict.fromkeys(column for row in rows for column in row if any(r.get(column) for r in rows))
    rows = [{column: row.get(column, "") for column in columns} for row in rows]
    notes = [NOTE.format(metric=metric, reference=reference), CHOICE]
    notes += [
        f"{name}: {f.left_out:,} images are left out, because not all of the runs have them."
        for name, f in found.items()
        if f.left_out
    ]
    if args.json:
        plain = {name: {**f.found._asdict(), "p_holm": f.adjusted, "images": f.images} for name, f in found.items()}
        print(json.dumps({"reference": reference, "metric": metric, "differences": plain}, indent=2))  # noqa: T201
    else:
        console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else WIDTH)
        table = Table(title=f"compared with {reference}")
        for column in rows[0]:
            table.add_column(column, justify="left" if column in ("run", "test") else "right", overflow="fold")
        for row in rows:
            table.add_row(*row.values())
        console.print(table)
        console.print("\n".join(notes))
    if args.html is not None:
        write_page(args.html, [entry for entries in systems.values() for entry in entries], rows, " ".join(notes))
    return 0


def _runs_of(name: str, known: Sequence[Entry], root: Path) -> list[Entry]:
    """Return the runs that a name denotes: one run, the runs of a series, or the runs that match a pattern.

    Raises:
        CxlpError: If there is no such run, or one has no test results.
    """
    path = name.rstrip("/")
    folder = next((place for place in (root / path, Path(path)) if place.is_dir()), None)
    if any(letter in name for letter in "*?["):
        found = [entry for entry in known if fnmatchcase(entry.name, name)]
    elif folder is not None and not (folder / "config.yaml").is_file() and not (folder / "metrics.json").is_file():
        own = re.compile(re.escape(folder.name) + r"-seed\d+")
        found = [
            entry
            for entry in catalogue.find_runs(folder)
            if entry.folder.parent == folder and own.fullmatch(entry.folder.name)
        ]
    else:
        found = catalogue.choose(known, [name], root)
    if not found:
        raise CxlpError(f"{name!r} matches no run in {root}. {did_you_mean(name, [entry.name for entry in known])}")
    untested = next((entry for entry in found if not entry.metric), None)
    if untested is not None:
        raise CxlpError(f"{untested.name} has no test results ({untested.state}): leave it out, or finish it first")
    return sorted(found, key=lambda entry: [int(part) if part.isdigit() else part for part in _parts(entry.name)])


def _parts(name: str) -> list[str]:
    """Split a name into alternating text and digits, so that names sort by their numbers."""
    return re.split(r"(\d+)", name)


def _facts(entries: Sequence[Entry], metric: str) -> dict[str, str]:
    """Return the table cells of a system; of several runs, the means and the standard deviation."""
    values = [100 * entry.value for entry in entries if entry.value is not None]
    chosen = [cross_validated(entry.found, metric) for entry in entries]
    deviation, interval = spread(values), entries[0].interval if len(entries) == 1 else None
    return {
        "runs": str(len(entries)) if len(entries) > 1 else "",
        f"test {metric} %": f"{mean(values):.2f}",
        "±": "" if deviation is None else f"{deviation:.2f}",
        "95% interval": f"{100 * interval['low']:.2f} to {100 * interval['high']:.2f}" if interval else "",
        "cv %": f"{100 * mean(c for c in chosen if c is not None):.2f}" if None not in chosen else "",
    }
