"""Convert a pretrained backbone: `mask2former convert backbone` for those who work in a checkout."""

import sys
from collections.abc import Sequence

from mask2former.cli.commands import run_tool
from mask2former.engine.command import run


def main(argv: Sequence[str] | None = None) -> int:
    """Write the converted weights; returns the exit status."""
    return run_tool("convert", ["backbone", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    run(main)
