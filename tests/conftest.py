import os

from mask2former.ops.cpu import LINEAR_VARIABLE

# Runs that are compared must not depend on what a busy machine measured. Processes that tests start inherit it.
os.environ.setdefault(LINEAR_VARIABLE, "linear")
