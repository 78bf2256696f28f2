"""Measure speed and memory: `mask2former benchmark` for those who work in a checkout, with the same arguments."""

from collections.abc import Sequence

from mask2former.cli.commands import run_tool
from mask2former.engine.command import run


def main(argv: Sequence[str] | None = None) -> int:
    """Run a suite, print its table and write its file; returns the exit status."""
    return run_tool("benchmark", argv)


if __name__ == "__main__":
    run(main)
