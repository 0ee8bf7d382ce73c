"""The seed of a run, which Lightning's ``seed_everything`` stores in the environment."""

import os


def run_seed() -> int:
    """Return the seed, or 0 if ``seed_everything`` was not called."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))
