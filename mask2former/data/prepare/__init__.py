"""Turning downloaded data sets into the files that the registered names read; `datasets/` has the commands."""
