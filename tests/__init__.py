"""A package, so that it comes before the `tests` of others on the path, such as those of Detectron2's source."""
