"""Imported in a process that measures: ends it as the system does when memory runs out."""

import os

os._exit(9)
