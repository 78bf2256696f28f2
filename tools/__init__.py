"""The command-line tools, as a package: so that tests import these and not a `tools` that another project installed."""
