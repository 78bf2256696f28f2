"""Count and time a model: `mask2former analyze` for those who work in a checkout, with the same arguments."""

from collections.abc import Sequence

from mask2former.cli.commands import run_tool
from mask2former.engine.command import run


def main(argv: Sequence[str] | None = None) -> int:
    """Print a report for each task; returns the exit status."""
    return run_tool("analyze", argv)


if __name__ == "__main__":
    run(main)
