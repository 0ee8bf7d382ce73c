"""Checks of the options common to all data sets."""

from cxlp.utils.errors import CxlpError

#: Upper bound of loading processes, to protect the machine.
MOST_WORKERS = 1024


def check_options(
    batch_size: int, num_workers: int | None, image_size: int | None, validation: float | str, on_broken: str
) -> None:
    """Check the ranges of options of ``ImageDataModule``.

    Raises:
        CxlpError: If an option is out of its range; the error names the first one.
    """
    for option, value in (("batch_size", batch_size), ("image_size", image_size or 1)):
        if not 1 <= value < 2**31:
            raise CxlpError(f"data.{option} is {value}: it must be {'1 or more' if value < 1 else 'less than 2^31'}")
    if num_workers is not None and not 0 <= num_workers <= MOST_WORKERS:
        raise CxlpError(f"data.num_workers is {num_workers}: it must lie between 0 and {MOST_WORKERS}, or be null")
    if not (validation in ("auto", "official") if isinstance(validation, str) else 0 <= validation < 1):
        raise CxlpError(f"data.validation is {validation}: it must lie in [0, 1), or be auto or official")
    if on_broken not in ("stop", "skip"):
        raise CxlpError(f"data.on_broken is {on_broken!r}: it must be stop or skip")
