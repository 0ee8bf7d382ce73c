"""The one exception that means: the user can mend this."""

from collections.abc import Iterable
from difflib import get_close_matches


class CxlpError(Exception):
    """Something that the user gave is wrong; the message says what, where, and what to do.

    ``train.py`` prints it without a traceback.
    """


def did_you_mean(wrong: str, valid: Iterable[str], shown: int = 8) -> str:
    """Return a sentence that names the valid choices closest to a wrong one.

    Args:
        wrong: What was given.
        valid: All valid choices.
        shown: The most that are named.
    """
    choices = list(valid)
    close = get_close_matches(wrong, choices, n=min(shown, 4), cutoff=0.6)
    close += [c for c in choices if wrong and wrong.lower() in c.lower() and c not in close][: shown - len(close)]
    if close:
        return f"Did you mean {', '.join(repr(c) for c in close)}?"
    end = ", ..." if len(choices) > shown else "."
    return f"Valid: {', '.join(repr(c) for c in choices[:shown])}{end}"
