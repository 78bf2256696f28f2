"""Suggestions for misspelt names."""

import difflib
from collections.abc import Iterable

SHOWN = 4


def did_you_mean(
    name: str, known: Iterable[str], *, first: Iterable[str] = (), cutoff: float = 0.6, else_all: bool = False
) -> str:
    """Return " (did you mean A or B?)", to follow the misspelt name, or "" if nothing is like it.

    Args:
        known: what names there are.
        first: suggestions that come before the like ones.
        cutoff: least likeness of a name, in 0..1.
        else_all: where nothing is like it, list all that is known.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=SHOWN - 1, cutoff=cutoff)
    matches = list(dict.fromkeys([*first, *close]))[:SHOWN]
    if matches:
        return f" (did you mean {' or '.join(matches)}?)"
    return f" (there are {', '.join(names)})" if else_all else ""
