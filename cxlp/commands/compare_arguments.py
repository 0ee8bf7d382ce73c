"""Checks of the arguments of ``cxlp compare``, made before torch is imported, which takes seconds."""

import json
from argparse import Namespace
from pathlib import Path

from cxlp.utils.errors import CxlpError


def check_arguments(args: Namespace) -> list[str]:
    """Check the configs, each recipe and the values of a sweep before torch is imported.

    Returns:
        The names of the recipes, values or systems that can be compared: all systems, even if ``--systems`` is given.

    Raises:
        CxlpError: If an argument is wrong.
    """
    from cxlp.runs.early import check_early
    from cxlp.studies.system_names import check_names, system_names

    given = [name for name in ("systems", "sweep", "recipes") if getattr(args, name) is not None]
    if len(given) > 1:
        raise CxlpError(f"--{given[0]} and --{given[1]} exclude each other: give one of them")
    if args.recipes and len({Path(name).stem for name in args.recipes}) < len(args.recipes):
        raise CxlpError(f"--recipes {' '.join(args.recipes)}: two of them have the same name; rename one")
    if args.combine is not None:
        if args.combine < 2:
            raise CxlpError(f"--combine is {args.combine}: it must be 2 or more")
        if args.no_store or args.seeds > 1:
            raise CxlpError(
                f"--combine and --{'no-store' if args.no_store else 'seeds'} exclude each other: a combination needs "
                "the stored features of one run per system"
            )
    # Without a config, --list names the systems for the paper's network.
    values = {"model.head.size": 3} if args.list and not args.rest and not given else check_early(args.rest)
    for recipe in args.recipes or ():
        check_early([*args.rest, *overlay(recipe)])
    if args.recipes:
        return [Path(recipe).stem for recipe in args.recipes]
    if args.sweep is not None:
        option, values_of_it = swept(args.sweep)
        for text in values_of_it:
            check_early([*args.rest, f"--{option}", text])
        return values_of_it
    backbone, size = values.get("model.backbone.name", "caffenet"), values.get("model.head.size", 1)
    names = system_names(str(backbone), int(size))
    if args.systems and not any("{" in argument for argument in args.rest):  # inline YAML may name another network
        check_names(args.systems, names)
    return names


def overlay(recipe: str) -> tuple[str, ...]:
    """Return the arguments that add a recipe to the configs; ``none`` adds nothing."""
    return () if recipe == "none" else ("--config", recipe)


def swept(sweep: str) -> tuple[str, list[str]]:
    """Split ``KEY=[V, ...]`` into the key and the values as command-line arguments.

    Raises:
        CxlpError: If the key or the list is missing, or a value occurs twice.
    """
    import yaml

    option, _, text = sweep.partition("=")
    option = option.strip().removeprefix("--")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise CxlpError(f"--sweep {sweep}: {' '.join(str(error).split())}") from error
    if not option or not isinstance(values, list) or not values:
        raise CxlpError(
            f"--sweep {sweep}: give a key and a list of values for it, such as 'model.frozen.c=[1, 10, 100]'"
        )
    written = [value if isinstance(value, str) else json.dumps(value, default=str) for value in values]
    if len(set(written)) < len(written):
        raise CxlpError(f"--sweep {sweep}: a value occurs twice; leave one out")
    return option, written
