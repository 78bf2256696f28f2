"""Names of modules and parameters chosen by patterns such as `backbone.*` or `*.bias`."""

from collections.abc import Collection
from fnmatch import fnmatchcase

from mask2former.similar import did_you_mean


def matching(pattern: str, names: Collection[str], *, key: str) -> list[str]:
    """The names that a pattern matches as a whole; `*` stands for anything, dots too, `?` and `[ab]` for a character.

    Args:
        key: of the config, for messages.

    Raises:
        ValueError: there are none.
    """
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        raise ValueError(f"{key} {pattern!r} matches nothing in the model{did_you_mean(pattern, names)}")
    return found
