"""The one exception that means: the user can mend this."""

import re
from collections.abc import Iterable
from difflib import get_close_matches


class CxlpError(Exception):
    """Something that the user gave is wrong; the message says what, where, and what to do.

    ``train.py`` prints it without a traceback.
    """


#: The most valid choices that are listed whole; of more, the nearest.
SHOWN, NEAREST = 40, 8


def nearest(wrong: str, valid: Iterable[str]) -> str | None:
    """Return the choice that is spelled most like a wrong one, whatever the case; or that contains it; or ``None``."""
    choices = list(valid)
    spelled = {choice.lower(): choice for choice in reversed(choices)}
    close = get_close_matches(wrong.lower(), spelled, n=1) or [c for c in reversed(spelled) if wrong.lower() in c]
    return spelled[close[0]] if close and wrong else None


def did_you_mean(wrong: str, valid: Iterable[str], prefix: str = "") -> str:
    """Return a sentence that names the nearest valid choice, if one is near, and a list of the valid ones.

    Args:
        wrong: What was given.
        valid: All valid choices.
        prefix: Of all of them, which the list leaves out.

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
    """Join names by commas; those that are not one plain word are quoted."""
    return ", ".join(name if re.fullmatch(r"[\w./+-]+", name) else repr(name) for name in names)
