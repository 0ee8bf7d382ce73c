"""``cxlp embed``: write feature vectors of images, for retrieval and clustering."""

import os
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from cxlp.commands import check_images, check_numbers, check_out_file, warn_about_boxes
from cxlp.runs.early import check_early
from cxlp.runs.places import NOT_USED, describing_data
from cxlp.utils.errors import CxlpError
from cxlp.utils.files import find_checkpoint
from cxlp.utils.spelling import percent


def add(add_parser: Callable[..., ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser(
        "embed",
        help="write feature vectors of images, computed by a checkpoint or, without labels, by a config",
        description="Write the pooled features of images, the input of the classifier, for retrieval and clustering.\n"
        "They are computed by a checkpoint's network, or by a config's network, whose PCA or codebook is fitted\n"
        "to the images themselves, without labels. With a config, keys of train.py may follow the paths:\n"
        "--model.*, --data.aspect and --data.transform.\n"
        "An .npz file has the arrays 'features' (n, D), float32, and 'paths'; a .parquet file has the columns\n"
        "'path' and 'features'.\n"
        "Exit status: 0 all files were read; 1 some could not be read and are left out; 2 the arguments are wrong.",
        epilog="--dim reduces the features by a PCA, computed from the Gram matrix of at most 4,000 of the images.\n"
        "Reduced vectors do not have unit length: normalise them before comparing them by cosine similarity.\n\n"
        "examples:\n"
        "  %(prog)s runs/NAME photos/ --out features.npz --dim 256\n"
        "  %(prog)s efficientnet_lite0.yaml photos/ --out features.npz\n"
        "  %(prog)s squeezenet.yaml 'photos/**/*.png' --out features.parquet --model.head.pca_dim 64",
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "source", type=Path, metavar="CHECKPOINT_OR_CONFIG", help="a checkpoint, a run's folder, or a .yaml config"
    )
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="images, folders or quoted patterns; -: read paths from stdin"
    )
    parser.add_argument(
        "--out",
        group="output",
        type=Path,
        required=True,
        metavar="FILE",
        help="such as features.npz or features.parquet",
    )
    parser.add_argument(
        "--dim", group="output", type=int, metavar="N", help="size of a vector (default: all pooled features)"
    )
    parser.add_argument(
        "--batch-size", group="computing", type=int, default=32, metavar="N", help="images per batch (default: 32)"
    )
    parser.add_argument(
        "--workers",
        group="computing",
        type=int,
        metavar="N",
        help="processes that decode images; 0: the main process (default: one per core, at most 8)",
    )
    parser.add_argument(
        "--device", group="computing", default="auto", help="auto (the default), cpu, cuda, cuda:1, ..."
    )
    parser.add_argument("--precision", group="computing", choices=("32", "bf16"), default="32", help="default: 32")
    parser.set_defaults(run=run, takes_more=True)


def run(args: Namespace) -> int:
    """Run the command; return the exit status."""
    check_numbers(args, dim=1, batch_size=1, workers=0)
    check_out_file(args.out)
    _check_format(args.out)
    check_images(args.paths)
    is_config = args.source.suffix in (".yaml", ".yml")
    if args.rest and not is_config:
        raise CxlpError(f"{args.rest[0]} has no effect with a checkpoint: leave it out, or give a config")
    if not is_config:
        find_checkpoint(args.source)
    for arg in args.rest:
        name = arg.partition("=")[0]
        if arg.startswith("--data") and not name.startswith(("--data.aspect", "--data.transform")):
            raise CxlpError(
                f"{name} has no effect on the images of PATH: leave it out "
                "(data.aspect and data.transform are the only keys of data)"
            )
    arguments = ["--config", str(args.source), *args.rest]
    if is_config:
        with describing_data(arguments) as described:
            check_early([*described, *NOT_USED])

    from cxlp.deploy.image_paths import image_paths, lines_of_stdin
    from cxlp.deploy.loading import load
    from cxlp.runs.embedding import Embedding, from_config
    from cxlp.utils.distributed import usable_cores

    if is_config:
        model = from_config(arguments, args.device, args.precision)
    else:
        model = load(args.source, args.device, args.precision)
        warn_about_boxes(model)
    if args.dim is not None and args.dim > model.network.out_features:
        raise CxlpError(f"--dim {args.dim}: the network's features have {model.network.out_features:,} dimensions")
    paths = list(image_paths(args.paths, lines_of_stdin()))
    if not paths:
        raise CxlpError("-: stdin has no paths")
    workers = min(8, usable_cores()) if args.workers is None else args.workers
    with TemporaryDirectory(dir=args.out.resolve().parent, prefix=f".{args.out.name}.") as folder:
        found = Embedding(model, paths, Path(folder), args.batch_size, workers)
        try:
            if is_config:
                found.fit()
            found.embed(args.dim)
            aside = Path(folder) / args.out.name
            found.write(aside)
            aside.replace(os.path.realpath(args.out))
        finally:
            found.close()
    for error in found.errors.values():
        print(error, file=sys.stderr)  # noqa: T201
    print(f"{args.out}: {found.shape[0]:,} x {found.shape[1]:,}")  # noqa: T201
    if found.components is not None:
        print(  # noqa: T201
            f"PCA to {found.shape[1]:,} of {model.network.out_features:,} dimensions keeps "
            f"{percent(found.components.kept)} of the variance. The PCA is fitted to these images: do not compare "
            "these vectors with those of another call"
        )
    if found.errors:
        said = f"{len(found.errors):,} of {len(paths):,} files could not be read and are left out"
        print(said, file=sys.stderr)  # noqa: T201
    return 1 if found.errors else 0


def _check_format(path: Path) -> None:
    """Check the format of the output file.

    Raises:
        CxlpError: If the suffix is neither .npz nor .parquet, or is .parquet and pyarrow is not installed.
    """
    if path.suffix not in (".npz", ".parquet"):
        raise CxlpError(f"--out {path}: the name must end in .npz or .parquet")
    if path.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise CxlpError(f"--out {path}: a .parquet file needs pyarrow: pip install pyarrow, or write .npz")
