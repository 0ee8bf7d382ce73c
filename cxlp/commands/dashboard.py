"""``cxlp dashboard``: create a workspace view in a wandb project, laid out for the runs of train.py."""

import os
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable


def add(add_parser: Callable[..., ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser(
        "dashboard",
        help="create a wandb workspace view laid out for the runs of train.py",
        description="Create a workspace view in a wandb project: validation and test metrics first, one panel for all\n"
        "learning rates, one for all gradient norms, one for cross-validated accuracy over C, and tables.\n"
        "This needs a wandb account, a network connection, and pip install 'cxlp[dashboard]'. Other views are\n"
        "not changed. The command never prompts.\n"
        "Exit status: 0 the view is saved; 2 wandb is offline, has no API key, or refuses the request.",
        epilog="examples:\n"
        "  %(prog)s\n"
        "  %(prog)s --project birds --entity my-team\n"
        "  %(prog)s --url 'https://wandb.ai/my-team/birds?nw=abc123'   # update that view",
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--project", default="cxlp", help="wandb project (default: cxlp, like run.project)")
    parser.add_argument("--entity", help="wandb user or team (default: your default entity)")
    parser.add_argument("--name", default="cxlp", help="name of the view (default: cxlp)")
    parser.add_argument("--url", help="address of an existing view to overwrite, instead of creating one")
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Run the command; return the exit status."""
    os.environ.setdefault("WANDB_SILENT", "true")

    from cxlp.runs.dashboard import save

    print(save(args.project, args.entity, args.name, args.url))  # noqa: T201
    return 0
