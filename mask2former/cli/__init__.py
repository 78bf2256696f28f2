"""The commands of `mask2former COMMAND`, one file each: `add_arguments(parser)` and `run(args)`.

These files import nothing of the library but inside `run`: `mask2former_cli` says why. What they call does the work,
and is there for Python too; `tools/*.py` call the same.
"""
