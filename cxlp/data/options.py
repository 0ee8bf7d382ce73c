"""Ranges of the options that all data sets have."""

from cxlp.utils.errors import CxlpError

#: The most loading processes: more would only exhaust the machine.
MOST_WORKERS = 1024


def check_options(
    batch_size: int, num_workers: int | None, image_size: int | None, validation: float | str, on_broken: str
) -> None:
    """Refuse options of a data set that are out of their range, see ``ImageDataModule``.

    Raises:
        CxlpError: Names the first one.
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
