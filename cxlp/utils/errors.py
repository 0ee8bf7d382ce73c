"""The exception for errors that the user can correct, and suggestions for misspelt names."""

import re
from collections.abc import Iterable
from difflib import get_close_matches


class CxlpError(Exception):
    """Error that the user can correct. The message says what is wrong, where, and what to do.

    ``train.py`` prints the message without a traceback.
    """


#: Up to ``SHOWN`` valid choices are all listed; of more, only the ``NEAREST`` closest ones.
SHOWN, NEAREST = 40, 8


def nearest(wrong: str, valid: Iterable[str]) -> str | None:
    """Return the choice closest in spelling, ignoring case, or one that contains the name, or ``None``."""
    choices = list(valid)
    spelled = {choice.lower(): choice for choice in reversed(choices)}
    close = get_close_matches(wrong.lower(), spelled, n=1) or [c for c in reversed(spelled) if wrong.lower() in c]
    return spelled[close[0]] if close and wrong else None


def did_you_mean(wrong: str, valid: Iterable[str], prefix: str = "") -> str:
    """Return a hint for an error message: the closest valid choice, if any, and the valid choices.

    Args:
        wrong: The invalid value.
        valid: All valid choices.
        prefix: Common prefix of all choices, which is not repeated in the list.

    Example:
        >>> did_you_mean("wern", ["gull", "wren"])
        "Did you mean 'wren'? Valid: gull, wren."
    """
    choices = list(dict.fromkeys(valid))
    near = nearest(wrong, choices)
    hint = f"Did you mean {prefix + near!r}? " if near else ""
    listed, end = choices, ""
    if len(choices) > SHOWN:
        listed = get_close_matches(wrong, choices, n=NEAREST, cutoff=0.5) or choices[:NEAREST]
        end = f", ... ({len(choices):,} in all)"
    inside = f" in {prefix.rstrip('.')}" if prefix else ""
    return f"{hint}Valid{inside}: {enumerated(listed)}{end}." if choices else hint.rstrip()


def enumerated(names: Iterable[str]) -> str:
    """Join names with commas. Names that are not a single plain word are quoted."""
    return ", ".join(name if re.fullmatch(r"[\w./+-]+", name) else repr(name) for name in names)
