"""``cxlp check``: whether a run over a data set would go through, and what it would come across."""

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

#: How many examples of a kind are listed without --all.
EXAMPLES = 3


def add(add_parser: Callable[..., ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser(
        "check",
        help="decode every image of a data set, and look for what is wrong with it",
        description="Decode every image that a data set's splits use, hold its lists against each other, and say\n"
        "what stops a run and what the loaders do about the rest. Nothing is downloaded or changed.\n"
        "Exit status: 0 a run would go through; 1 it would not; 2 the data set is not there or cannot be read.",
        epilog="examples:\n  %(prog)s cub200\n  %(prog)s folder --root DIR --all",
        formatter_class=RawDescriptionHelpFormatter,
    )
    add_data_set(parser)
    parser.add_argument("--workers", type=int, metavar="N", help="threads that decode (default: one per core)")
    parser.add_argument("--all", action="store_true", help="list all files, not only a few of each kind")
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Run the command; return the exit status."""
    check_numbers(args, workers=1)
    how = f"To get it: {program()} download {args.name}{f' --root {args.root}' if args.root else ''}"
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
    # Paths are not wrapped, so that they can be copied, nor are brackets in them taken for colours.
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(_counts(report, f"{data.name} in {data.root}", data.multi_label))
    console.print(f"{report.decoded:,} of {report.files:,} files can be decoded")
    for line in data.remarks():
        console.print(line)
    console.print()
    if report.findings:
        console.print(_overview(report))
    _list(report, args.all, console)
    console.print(f"\nA run would stop: {report.defects:,} defects." if report.defects else "\nA run would go through.")
    return 1 if report.defects else 0


def _counts(report: "Report", title: str, multi_label: bool) -> Table:
    table = Table("split", title=title)
    for name in ("images", "classes", "fewest of a class", "most", *(("positive", "ignored") if multi_label else ())):
        table.add_column(name, justify="right")
    for split, counts in report.counts.items():
        numbers = astuple(counts) if multi_label else astuple(counts)[:4]
        table.add_row(split, *(f"{n:,}" for n in numbers))
    return table


def _overview(report: "Report") -> Table:
    table = Table("finding", title="What was found")
    table.add_column("times", justify="right")
    table.add_column("what the loaders do")
    for kind, found in report.findings.items():
        table.add_row(kind.what, f"{len(found):,}", kind.effect, style="red" if kind.stops else None)
    return table


def _list(report: "Report", everything: bool, console: Console) -> None:
    """List defects, each with its reason, then examples of the rest; of missing files examples, too."""
    from cxlp.data.inspection import Kind

    for kind, found in report.findings.items():
        whole = everything or (kind.stops and kind is not Kind.MISSING)
        shown = found if whole else found[:EXAMPLES]
        console.print(f"\n{'DEFECT: ' if kind.stops else ''}{kind.what}")
        for _, where, detail in shown:
            console.print(f"  {where}{': ' if detail else ''}{detail}")
        if len(found) > len(shown):
            console.print(f"  and {len(found) - len(shown):,} more (--all lists them)")
