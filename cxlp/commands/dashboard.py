"""``cxlp dashboard``: give a wandb project the layout that fits its runs."""

import os
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable


def add(add_parser: Callable[..., ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser(
        "dashboard",
        help="give a wandb project a workspace: validation and test first, rates and gradients in a panel each",
        description="Save a view of a wandb project that fits the runs of train.py: validation and test on top, one\n"
        "panel for all learning rates and one for all gradient norms, cross-validated accuracy over C, tables.\n"
        "Needs a wandb account, online, and pip install 'cxlp[dashboard]'. Other views are left as they are.\n"
        "Exit status: 0; 2 wandb is offline, finds no key, or refuses. Nothing is ever asked.",
        epilog="examples:\n"
        "  %(prog)s\n"
        "  %(prog)s --project birds --entity my-team\n"
        "  %(prog)s --url 'https://wandb.ai/my-team/birds?nw=abc123'   # that view anew, as after an update of cxlp",
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--project", default="cxlp", help="the project (default: cxlp, as run.project)")
    parser.add_argument("--entity", help="user or team (default: your own)")
    parser.add_argument("--name", default="cxlp", help="name of the view (default: cxlp)")
    parser.add_argument("--url", help="address of a view that gets the layout instead of a new one")
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Run the command; return the exit status."""
    os.environ.setdefault("WANDB_SILENT", "true")

    from cxlp.runs.dashboard import save

    print(save(args.project, args.entity, args.name, args.url))  # noqa: T201
    return 0
