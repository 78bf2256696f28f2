"""The console script `mask2former`: the files of `mask2former/cli` under a name of their own.

`import mask2former` registers every component and takes seconds. Found under this name, the files that parse a command
line are imported without it, so that `--help` and a wrong argument answer at once; a command imports the library when
it runs.
"""

import sys
from importlib import import_module
from importlib.util import find_spec

_library = find_spec("mask2former")
__path__ = [f"{folder}/cli" for folder in _library.submodule_search_locations or ()] if _library else []


def main() -> int:
    """Run the command that the arguments of the process name; returns the exit status."""
    status: int = import_module("mask2former_cli.commands").main()
    return status


if __name__ == "__main__":
    sys.exit(main())
