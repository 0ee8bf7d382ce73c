"""``cxlp check``: inspect a data set, and report whether a run on it would succeed."""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from cxlp.commands import add_data_set, check_numbers
from cxlp.data import DATA_MODULES, data_module
from cxlp.data.listing import check_folder
from cxlp.utils.errors import CxlpError
from cxlp.utils.program import program

if TYPE_CHECKING:
    from cxlp.data.checking import Report

#: Number of examples of each finding that are listed without --all.
EXAMPLES = 3


def add(add_parser: Callable[..., ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser(
        "check",
        help="decode every image of a data set, and report errors in it",
        description="Decode all images of a data set, and compare its lists with each other and with its files.\n"
        "The report names the defects that would stop a run, and how the loaders treat other findings.\n"
        "Nothing is downloaded or changed.\n"
        "Exit status: 0 a run would succeed; 1 it would not; 2 the data set is missing or cannot be read.",
        epilog="examples:\n  %(prog)s cub200\n  %(prog)s folder --root DIR --all",
        formatter_class=RawDescriptionHelpFormatter,
    )
    add_data_set(parser)
    parser.add_argument("--workers", type=int, metavar="N", help="threads that decode images (default: one per core)")
    parser.add_argument(
        "--all", action="store_true", help=f"list all files, not only {EXAMPLES} of each kind of finding"
    )
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Run the command; return the exit status."""
    check_numbers(args, workers=1)
    how = f"To download it: {program()} download {args.name}{f' --root {args.root}' if args.root else ''}"
    if args.name == "folder":
        check_folder(args.root or Path("data/folder"))
    elif args.name != "table" and args.name in DATA_MODULES and args.root is not None and not args.root.exists():
        raise CxlpError(f"{args.name}: {args.root} does not exist. {how}")
    data = data_module(args.name, args.root)

    from cxlp.data.checking import check
    from cxlp.utils.distributed import usable_cores

    try:
        report = check(data, args.workers or usable_cores())
    except CxlpError as error:
        if data.root.exists() or args.name in ("folder", "table"):
            raise
        raise CxlpError(f"{error}\n{how}") from error
    # Without soft_wrap, paths would be wrapped and could not be copied; with markup, brackets in them would be colours.
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(_counts(report, f"{data.name} in {data.root}", data.multi_label))
    console.print(f"{report.decoded:,} of {report.files:,} files can be decoded")
    for line in data.remarks():
        console.print(line)
    console.print()
    if report.findings:
        console.print(_overview(report))
    _list(report, args.all, console)
    console.print(f"\nA run would stop: {report.defects:,} defects." if report.defects else "\nA run would succeed.")
    return 1 if report.defects else 0


def _counts(report: "Report", title: str, multi_label: bool) -> Table:
    table = Table("split", title=title)
    for name in ("images", "classes", "min per class", "max", *(("positive", "ignored") if multi_label else ())):
        table.add_column(name, justify="right")
    for split, counts in report.counts.items():
        numbers = astuple(counts) if multi_label else astuple(counts)[:4]
        table.add_row(split, *(f"{n:,}" for n in numbers))
    return table


def _overview(report: "Report") -> Table:
    table = Table("finding", title="Findings")
    table.add_column("count", justify="right")
    table.add_column("effect on a run")
    for kind, found in report.findings.items():
        table.add_row(kind.what, f"{len(found):,}", kind.effect, style="red" if kind.stops else None)
    return table


def _list(report: "Report", everything: bool, console: Console) -> None:
    """List the files of each finding: all of a defect, except of missing files; otherwise a few examples."""
    from cxlp.data.inspection import Kind

    for kind, found in report.findings.items():
        whole = everything or (kind.stops and kind is not Kind.MISSING)
        shown = found if whole else found[:EXAMPLES]
        console.print(f"\n{'DEFECT: ' if kind.stops else ''}{kind.what}")
        for _, where, detail in shown:
            console.print(f"  {where}{': ' if detail else ''}{detail}")
        if len(found) > len(shown):
            console.print(f"  and {len(found) - len(shown):,} more (--all lists them)")
