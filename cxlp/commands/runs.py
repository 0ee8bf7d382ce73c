"""``cxlp runs``: list, show, compare, rank and delete the runs in a folder."""

import json
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxlp.utils.errors import CxlpError
from cxlp.utils.program import program

if TYPE_CHECKING:
    from rich.console import Console

    from cxlp.studies.catalogue import Entry

#: Values of --sort.
SORTS = ("name", "data", "backbone", "head", "mode", "accuracy", "date", "size")
#: Maximum number of runs on a page.
MAX_ON_PAGE = 30
#: Width of tables if standard output is not a terminal, characters.
WIDTH = 200
#: Subcommands that a user may expect from other programs, and the options that do the same here.
_WORDS = {"list": "", "show": "", "delete": " --delete --yes", "rm": " --delete --yes", "remove": " --delete --yes"}


def add(add_parser: Callable[..., ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser(
        "runs",
        help="list, show, compare, rank and delete runs",
        description="List the runs in a folder, with later tests (cxlp test). A run's name is its path below --root.\n"
        "One name shows the details of that run. --html writes a page that compares the named or filtered runs.\n"
        "'runs compare' tests the differences between runs on the same test images. There, the folder of a\n"
        "series (train --seeds) or a quoted pattern such as 'cl-split*' denotes several runs of one system.\n"
        "'runs cells' takes the folders of comparisons (cxlp compare), ranks the systems that all of them share,\n"
        "and tests the differences, with each comparison as one sample.\n"
        "--delete deletes only folders in --root that are certainly runs, and follows no links.\n"
        "Exit status: 0; 2 the arguments are wrong, or a run to be deleted is still in progress.",
        epilog="examples:\n"
        "  %(prog)s --sort accuracy\n"
        "  %(prog)s --filter cub --filter frozen\n"
        "  %(prog)s NAME\n"
        "  %(prog)s NAME OTHER --html compare.html\n"
        "  %(prog)s compare NAME OTHER THIRD --reference THIRD\n"
        "  %(prog)s cells COMPARISON OTHER THIRD --picture ranks.png\n"
        "  %(prog)s NAME OTHER --delete --yes",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="runs, by name or path (default: all)")
    parser.add_argument(
        "--root",
        group="which runs, in which order",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="folder of the runs (default: runs)",
    )
    parser.add_argument(
        "--sort",
        group="which runs, in which order",
        choices=SORTS,
        default="date",
        help="default: date, newest first",
    )
    parser.add_argument("--reverse", group="which runs, in which order", action="store_true", help="reverse the order")
    parser.add_argument(
        "--filter",
        group="which runs, in which order",
        action="append",
        default=[],
        metavar="TEXT",
        help="only runs that contain this text in any column; repeatable",
    )
    parser.add_argument("--html", group="output", type=Path, metavar="FILE", help="write a page that compares the runs")
    parser.add_argument(
        "--reference",
        group="output",
        metavar="NAME",
        help="with compare: the run that the others are compared with (default: the first)",
    )
    parser.add_argument(
        "--picture", group="output", type=Path, metavar="FILE", help="with cells: draw the critical-difference diagram"
    )
    parser.add_argument("--json", group="output", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--delete",
        group="deleting",
        action="store_true",
        help="list the named or filtered runs, and with --yes delete them",
    )
    parser.add_argument("--yes", group="deleting", action="store_true", help="confirm --delete")
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Run the command; return the exit status."""
    from rich.console import Console

    from cxlp.studies import catalogue

    if args.yes and not args.delete:
        raise CxlpError("--yes has no effect without --delete")
    if args.names[:1] == ["compare"]:
        from cxlp.commands.runs_compare import compare

        return compare(args)
    if args.names[:1] == ["cells"]:
        from cxlp.commands.runs_cells import cells

        return cells(args)
    if args.picture is not None:
        raise CxlpError("--picture has no effect without cells. Give: cxlp runs cells COMPARISON OTHER --picture FILE")
    word, *others = args.names or [""]
    if word in _WORDS and others and not (args.root / word).exists():
        meant = " ".join([program(), "runs", *others])
        raise CxlpError(f"there is no subcommand {word!r}. Give: {meant}{_WORDS[word]}")
    if args.reference is not None:
        raise CxlpError(
            "--reference has no effect without compare. Give: cxlp runs compare NAME OTHER --reference NAME"
        )
    found = catalogue.find_runs(args.root)
    entries = catalogue.choose(found, args.names, args.root) if args.names else found
    entries = [entry for entry in entries if all(catalogue.matches(entry, text) for text in args.filter)]
    key, descending = catalogue.SORTS[args.sort]
    entries.sort(key=key, reverse=descending != args.reverse)
    if not entries:
        raise CxlpError(f"no run in {args.root}" + (f" contains {' and '.join(args.filter)}" if args.filter else ""))
    if args.delete:
        return _delete(args, entries)
    # Tables in a pipe are wide enough not to be wrapped.
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else WIDTH)
    if args.json:
        print(json.dumps([_plain(entry) for entry in entries], indent=2))  # noqa: T201
    elif len(args.names) == 1 and args.html is None:
        _show(entries[0], console)
    else:
        _list(entries, console)
    if args.html is not None:
        write_page(args.html, entries)
    return 0


def _facts(entry: "Entry") -> dict[str, str]:
    from cxlp.utils.spelling import as_text, span_as_text

    value, interval = entry.value, entry.interval
    text = as_text(entry.metric, value) if value is not None else entry.state
    return {
        "data": entry.data,
        "backbone": entry.backbone,
        "head": entry.head,
        "mode": entry.mode,
        "accuracy or mAP": text + (" mAP" if entry.metric == "test/mAP" else ""),
        "95% interval": span_as_text(entry.metric, interval) if interval else "",
        "begun": f"{entry.date:%Y-%m-%d %H:%M}",
        "MB": f"{entry.size / 1e6:,.0f}",
    }


def _plain(entry: "Entry") -> dict[str, Any]:
    interval = entry.interval
    return {
        "name": entry.name,
        "folder": str(entry.folder),
        "state": entry.state,
        "data": entry.data,
        "backbone": entry.backbone,
        "head": entry.head,
        "mode": entry.mode,
        "metric": entry.metric or None,
        "value": entry.value,
        "interval": interval,
        "begun": entry.date.isoformat(timespec="seconds"),
        "bytes": entry.size,
    }


def _size(entries: Sequence["Entry"]) -> str:
    size = sum(entry.size for entry in entries)
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"


def _list(entries: Sequence["Entry"], console: "Console") -> None:
    from rich.table import Table

    table = Table("run", title=f"{len(entries)} runs, {_size(entries)}")
    facts = [_facts(entry) for entry in entries]
    for name in facts[0]:
        table.add_column(name, justify="right" if name in ("accuracy or mAP", "95% interval", "MB") else "left")
    for entry, values in zip(entries, facts, strict=True):
        table.add_row(entry.name, *values.values())
    console.print(table)


def _show(entry: "Entry", console: "Console") -> None:
    from rich.table import Table

    from cxlp.reports.history import wandb_command
    from cxlp.utils.spelling import as_text, interval_as_text

    table = Table("what", "value", title=entry.name)
    for name, value in {"state": entry.state, **_facts(entry)}.items():
        table.add_row(name, value)
    table.add_section()
    intervals = entry.found.get("intervals", {})
    for name, value in entry.found.get("metrics", {}).items():
        span = f", {interval_as_text(name, intervals[name])}" if name in intervals else ""
        table.add_row(name, ("" if value is None else as_text(name, value)) + span)
    table.add_section()
    for split, count in entry.found.get("images", {}).items():
        table.add_row(f"images: {split}", f"{count:,}")
    for phase, seconds in entry.found.get("seconds", {}).items():
        table.add_row(f"time: {phase}", f"{seconds:.1f} s")
    for part in ("git", "versions", "machine"):
        facts = entry.origin.get(part) or {}
        table.add_row(part, ", ".join(f"{key} {value}" for key, value in facts.items()))
    table.add_section()
    for file in sorted(entry.folder.rglob("*.ckpt")):
        table.add_row(str(file.relative_to(entry.folder)), f"{file.stat().st_size / 1e6:,.1f} MB")
    console.print(table)
    for place in (entry.folder / "report.html", entry.folder / "refit" / "report.html"):
        if place.is_file():
            console.print(f"Look at it in a browser: {place}", soft_wrap=True)
    if look := wandb_command(entry.folder):
        console.print(f"Look at the curves: {look}", soft_wrap=True)


def write_page(file: Path, entries: Sequence["Entry"], paired: Sequence[dict[str, str]] = (), note: str = "") -> None:
    """Write the page that compares runs with :func:`~cxlp.reports.overview.write_overview`."""
    from cxlp.commands import check_out_file
    from cxlp.reports.overview import Shown, write_overview
    from cxlp.studies.catalogue import differing

    if len(entries) > MAX_ON_PAGE:
        raise CxlpError(
            f"--html compares at most {MAX_ON_PAGE} runs, and these are {len(entries)}: name some, or use --filter"
        )
    check_out_file(file, "--html")
    shown = [Shown(entry.name, entry.folder, _facts(entry), entry.found) for entry in entries]
    write_overview(file, shown, differing(entries), paired, note)
    print(f"Look at it in a browser: {file}", file=sys.stderr)  # noqa: T201 (standard output may be JSON)


def _delete(args: Namespace, entries: Sequence["Entry"]) -> int:
    from cxlp.studies.deletion import check_deletable, delete

    if not args.names and not args.filter:
        raise CxlpError("--delete: name the runs, or select them with --filter")
    check_deletable(entries, args.root)
    for entry in entries:
        print(f"{entry.folder}: {entry.size / 1e6:,.0f} MB, {entry.state}")  # noqa: T201
    if not args.yes:
        what = "1 run" if len(entries) == 1 else f"{len(entries)} runs"
        raise CxlpError(f"{what} would be deleted: add --yes to delete")
    delete(entries, args.root)
    print(f"deleted {_size(entries)}")  # noqa: T201
    return 0
