"""Names that a user misspelt."""

from collections.abc import Iterable
from difflib import get_close_matches

_ALIKE = 0.6


def choose_from(asked: object, known: Iterable[str]) -> str:
    """What to write in place of an unknown name: the one spelled like it, and all there are."""
    names = list(known)
    close = get_close_matches(asked, names, n=1, cutoff=_ALIKE) if isinstance(asked, str) else []
    listed = f"choose from {', '.join(names)}"
    return f"did you mean {close[0]!r}? Or {listed}" if close else listed
