"""What `mask2former benchmark` measures: one suite per file, and what they share."""
