"""The run's seed, as Lightning's ``seed_everything`` leaves it for all processes."""

import os


def run_seed() -> int:
    """Return the seed; 0 where nobody called ``seed_everything``."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))
