"""``cxlp compare``: compare the paper's systems, recipes, or values of one option on one benchmark."""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxlp.commands.compare_arguments import check_arguments, overlay, swept
from cxlp.utils.errors import CxlpError

if TYPE_CHECKING:
    from cxlp.data.datamodule import ImageDataModule
    from cxlp.runs.recipe import ModelConfig
    from cxlp.studies.comparison import System


def add(add_parser: Callable[..., ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser(
        "compare",
        help="run the paper's systems, several recipes, or several values of an option, on one benchmark",
        description="Run several systems or recipes on one benchmark, one after another. Accuracy, size and cost are\n"
        "written to one table (terminal, Markdown, CSV, wandb) and drawn. Finished runs are not repeated.\n"
        "All other arguments are those of train.py.\n"
        "Exit status: 0 all systems have a result; 1 some failed; 2 the arguments are wrong; 3 a picture, a\n"
        "wandb run or another secondary output could not be written.",
        epilog="examples:\n"
        "  %(prog)s --config cub200.yaml\n"
        "  %(prog)s --config cub200.yaml --config squeezenet.yaml --systems CNN-Global CL\n"
        "  %(prog)s --config demo.yaml --sweep 'model.head.pca_dim=[32, 64, 128]'\n"
        "  %(prog)s --config demo.yaml --recipes none cross_fit.yaml two_stage.yaml --reach 90\n"
        "  %(prog)s --config demo.yaml --systems CL average bilinear --combine 2 --reference average\n"
        "  %(prog)s --config cub200.yaml --list",
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--systems",
        group="what to compare",
        nargs="+",
        metavar="NAME",
        help="the systems to run (default: all; see --list)",
    )
    parser.add_argument(
        "--sweep",
        group="what to compare",
        metavar="KEY=[V, ...]",
        help="instead of systems: run the configs' own network with each of these values of a key",
    )
    parser.add_argument(
        "--recipes",
        group="what to compare",
        nargs="+",
        metavar="CONFIG",
        help="instead of systems: run the configs' own network with each of these overlays; none: no overlay",
    )
    parser.add_argument(
        "--reach",
        group="seeds and epochs",
        type=float,
        metavar="PERCENT",
        help="also report the first epoch whose accuracy or mAP on the held-out images reaches this value "
        "(mean over seeds)",
    )
    parser.add_argument(
        "--reference",
        group="what to compare",
        metavar="NAME",
        help="test each row's difference from this one on the same images; the table has an interval and a p-value "
        "corrected by Holm's method",
    )
    parser.add_argument(
        "--combine",
        group="what to compare",
        type=int,
        metavar="N",
        help="also cross-validate all combinations of 2 to N systems on their stored features, and test the best one",
    )
    parser.add_argument(
        "--seeds",
        group="seeds and epochs",
        type=int,
        default=1,
        metavar="N",
        help="run each system with N consecutive seeds, starting at seed_everything; the table has the mean and the "
        "standard deviation, and the cost of the first seed (default: 1)",
    )
    parser.add_argument("--list", group="what to compare", action="store_true", help="list the systems and exit")
    parser.add_argument(
        "--out",
        group="output",
        type=Path,
        metavar="DIR",
        help="folder for runs, table and pictures (default: a folder in runs/)",
    )
    parser.add_argument(
        "--no-store",
        group="output",
        action="store_true",
        help="do not store features (which take 5 MB per image for all systems)",
    )
    parser.add_argument(
        "--clean",
        group="output",
        action="store_true",
        help="delete the stored features, which all comparisons share, and exit",
    )
    parser.set_defaults(run=run, takes_more=True)


#: Folder of the stored features, which the runs of all comparisons share.
STORE = Path("runs") / "features"


def run(args: Namespace) -> int:
    """Run the command; return the exit status."""
    for key in ("--run.root", "--run.name", "--ckpt_path"):
        if any(a == key or a.startswith(f"{key}=") for a in args.rest):
            raise CxlpError(f"{key} has no effect: compare creates a run folder for each system; set --out instead")
    if args.list:
        print("\n".join(check_arguments(args)))  # noqa: T201
        return 0
    if args.rest or not args.clean:
        check_arguments(args)

    from cxlp.commands.compare_table import show
    from cxlp.frozen.cache import size_in_bytes
    from cxlp.metrics.classification import SELECTION
    from cxlp.reports.outputs import Outputs
    from cxlp.runs.cli import parse, parts_of
    from cxlp.runs.loggers import RunConfig
    from cxlp.studies.comparison import Comparison, without
    from cxlp.studies.evidence import gather
    from cxlp.studies.layers import check_one_choice
    from cxlp.studies.seeds import seeds_of
    from cxlp.studies.system_names import check_names
    from cxlp.studies.tables import table, write_reports

    if args.clean:
        given = parse(args.rest)["model"]["frozen"]["store"] if args.rest else None
        print(_clean(Path(given or STORE)))  # noqa: T201
        return 0
    config = parse(args.rest)
    parts = parts_of(config)
    model, data = parts["model"], parts["data"]
    option = None if args.sweep is None else swept(args.sweep)[0]
    folder = args.out or Path("runs") / _folder_name(config, data, "recipes" if args.recipes else option, args.rest)
    store = None if args.no_store else Path(config["model"]["frozen"]["store"] or STORE)
    seeds = seeds_of(config, args.seeds)
    if len(seeds) > 1 and option == "seed_everything":
        raise CxlpError("--seeds and --sweep seed_everything exclude each other: give one of them")
    arguments, metric = without(args.rest, "--model.frozen.store"), SELECTION[data.multi_label]
    comparison = Comparison(arguments, folder, metric, store, seeds if len(seeds) > 1 else (None,))
    if not args.recipes and option is None:
        check_one_choice(config, seeds)
        model = parts_of(parse(comparison.name_layers(args.rest)))["model"]
    chosen = _choose(args, model, data)
    configs = [config]
    if option is not None or args.recipes:
        # A misspelt option is reported once, before anything runs.
        configs = [parse([*args.rest, *s.options]) for s in (chosen if args.recipes else chosen[:1])]
    if args.recipes:
        # The command line's number of epochs applies to recipes with gradient epochs only; a frozen recipe stays so.
        own = without(args.rest, "--trainer.max_epochs")
        frozen = [not parse([*own, *system.options])["trainer"]["max_epochs"] for system in chosen]
        chosen = [
            replace(s, options=(*s.options, "--trainer.max_epochs", "0")) if is_frozen else s
            for s, is_frozen in zip(chosen, frozen, strict=True)
        ]
    if args.systems:
        check_names(args.systems, [system.name for system in chosen])
        chosen = [system for system in chosen if system.name in args.systems]
    if args.combine is not None and len(chosen) < 2:
        raise CxlpError(f"--combine is {args.combine}, but {chosen[0].name} is the only system: give two or more")
    if args.reference is not None:
        check_names([args.reference], [system.name for system in chosen])
    if args.reach is not None:
        _check_reach(args.reach, [parts_of(c)["data"] for c in configs])
    rows, failed = comparison.run(chosen)
    outputs = Outputs()
    if rows:
        given = config["run"]
        logged = RunConfig(**{**given.as_dict(), "name": None, "root": str(folder)})
        places = {row.name: row.places for row in rows}
        reference = args.reference if args.reference in places else None  # the reference's run may have failed
        evidence = gather(places, metric, reference, args.combine, store, folder, outputs)
        files = write_reports(folder, metric, rows, option, logged, outputs, args.reach, evidence)
        columns, values = table(rows, metric, args.reach, evidence)
        show(columns, values, f"{data.name}, {model.backbone.name}")
        print("\n".join(str(file) for file in files))  # noqa: T201
        if store is not None:
            gigabytes = size_in_bytes(store) / 1e9
            print(f"{gigabytes:.2f} GB of features are stored in {store} (--clean deletes them)")  # noqa: T201
    for name in failed:
        print(f"no result: {name}")  # noqa: T201
    if failed:
        return 1
    return 3 if outputs.failed or any(row.incomplete for row in rows) else 0


def _check_reach(percent: float, data: Sequence["ImageDataModule"]) -> None:
    if not 1 < percent <= 100:
        raise CxlpError(f"--reach is {percent:g}: give a percentage above 1, such as 88")
    if not any(d.holds_out_own if d.validation == "auto" else d.validation for d in data):
        raise CxlpError("--reach needs held-out images, and there are none: set data.validation, such as 0.1")


def _clean(store: Path) -> str:
    from cxlp.frozen.cache import clean, size_in_bytes

    if not store.is_dir():
        return f"no features are stored in {store}"
    gigabytes = size_in_bytes(store) / 1e9
    clean(store)
    return f"deleted {gigabytes:.2f} GB of features in {store}"


def _choose(args: Namespace, model: "ModelConfig", data: "ImageDataModule") -> list["System"]:
    """Return the systems to choose from."""
    from cxlp.heads import CrossLayerPooling
    from cxlp.studies.comparison import System
    from cxlp.studies.systems import systems

    if args.recipes:
        return [System(Path(name).stem, None, overlay(name)) for name in args.recipes]
    if args.sweep is None:
        base = model.heads[0]
        if len(model.heads) > 1 or type(base) is not CrossLayerPooling:
            raise CxlpError(
                "model.head: compare needs exactly one head, CrossLayerPooling, from which it derives systems"
            )
        made = systems(model.backbone, base, data.transform)
        return [System(name, network, tuple(network["options"])) for name, network in made.items()]
    option, written = swept(args.sweep)
    return [System(text, None, (f"--{option}", text)) for text in written]


def _folder_name(config: Any, data: "ImageDataModule", what: str | None, arguments: Sequence[str]) -> str:  # noqa: ANN401 (a namespace)
    """Return a folder name: the kind of comparison, the configs' file names and a hash of other arguments."""
    from cxlp.runs.folder import names_of_configs
    from cxlp.studies.comparison import without
    from cxlp.utils.fingerprint import digest

    files = names_of_configs(config, data)
    changes = without(arguments, "--config", "-c", "--run.", "--trainer.")
    number = [digest(*changes, size=3)] if changes else []
    return "-".join([what.rpartition(".")[2] if what else "compare", *files, *number])
