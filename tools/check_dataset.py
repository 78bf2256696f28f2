"""Check a registered data set: `mask2former check` for those who work in a checkout, with the same arguments."""

from collections.abc import Sequence

from mask2former.cli.commands import run_tool
from mask2former.engine.command import run


def main(argv: Sequence[str] | None = None) -> int:
    """Check the data set; returns the exit status."""
    return run_tool("check", argv)


if __name__ == "__main__":
    run(main)
