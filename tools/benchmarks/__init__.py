"""What `tools/benchmark.py` measures: one suite per file, and what they share."""
