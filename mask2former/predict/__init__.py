"""Predicting on files: which images, what is drawn of them, and what is written down."""
