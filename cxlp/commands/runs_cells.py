"""``cxlp runs cells``: mean ranks of systems over several comparisons, and tests of their differences."""

import json
import sys
from argparse import Namespace
from math import isinf
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cxlp.utils.errors import CxlpError


def cells(args: Namespace) -> int:
    """Run the command with the arguments of :mod:`cxlp.commands.runs`; return the exit status."""
    from cxlp.commands import check_out_file
    from cxlp.commands.runs import WIDTH
    from cxlp.metrics.ranks import rank_systems
    from cxlp.reports.rank_diagram import draw_ranks
    from cxlp.studies.cells import read_cells
    from cxlp.studies.paired import p_as_text
    from cxlp.utils.files import write_whole

    others = args.delete, args.filter, args.html, args.reference, args.reverse, args.sort != "date"
    if any(others):
        raise CxlpError("runs cells accepts no options except --root, --picture and --json: leave out the others")
    if args.picture is not None:
        check_out_file(args.picture, "--picture")
        if args.picture.suffix.lower() != ".png":
            raise CxlpError(f"--picture {args.picture}: the diagram is a PNG, so name a file that ends in .png")
    found = read_cells([_folder(name, args.root) for name in args.names[1:]])
    ranking = rank_systems(found.values)
    order = ranking.ranks.argsort(kind="stable").tolist()
    if args.json:
        plain = ranking._asdict() | {"ranks": ranking.ranks.tolist(), "pairs": ranking.pairs.tolist()}
        if isinf(ranking.iman_davenport):
            plain["iman_davenport"] = None  # JSON has no infinity
        known = {"cells": found.cells, "systems": found.systems, "values": found.values.tolist()}
        print(json.dumps(known | plain, indent=2))  # noqa: T201
    else:
        console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else WIDTH)
        table = Table("system", title=f"test accuracy or mAP, %, in {len(found.cells)} cells")
        for head in ("mean rank", *found.cells):
            table.add_column(head, justify="right", overflow="fold")
        for k in order:
            table.add_row(
                found.systems[k], f"{ranking.ranks[k]:.2f}", *(f"{value:.2f}" for value in found.values[:, k])
            )
        console.print(table)
        pairs = Table("system", title="p of Wilcoxon's signed-rank test, corrected by Holm's method for all pairs")
        for k in order[:-1]:
            pairs.add_column(found.systems[k], justify="right", overflow="fold")
        for place, k in enumerate(order[1:], 1):
            pairs.add_row(found.systems[k], *(p_as_text(ranking.pairs[k, other]) for other in order[:place]))
        console.print(pairs)
        least, count = 2.0 ** (1 - len(found.cells)), len(order) * (len(order) - 1) // 2
        console.print(
            f"Friedman: chi-squared {ranking.friedman:.2f}, p {p_as_text(ranking.p)}; Iman and Davenport: F "
            f"{ranking.iman_davenport:.2f}, p {p_as_text(ranking.p_iman_davenport)}. Nemenyi's critical difference of "
            f"mean ranks at the 5 % level: {ranking.critical_difference:.2f}."
        )
        if least * count > 0.05:
            console.print(
                f"With {len(found.cells)} cells, the smallest possible p of a pair is {p_as_text(least)}, or "
                f"{p_as_text(min(1.0, least * count))} after the correction for {count} pair{'s' * (count != 1)}: no "
                "single pair can be significant. More cells or fewer systems are needed."
            )
    if args.picture is not None:
        drawn = draw_ranks(found.systems, ranking.ranks.tolist(), ranking.critical_difference, len(found.cells))
        write_whole(args.picture, drawn)
        print(args.picture, file=sys.stderr)  # noqa: T201 (standard output may be JSON)
    return 0


def _folder(name: str, root: Path) -> Path:
    """Find a comparison's folder by its name below the root, or by its path."""
    return root / name if (root / name).is_dir() else Path(name)
