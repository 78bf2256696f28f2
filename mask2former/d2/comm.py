"""Communication between processes; every function also works without a process group."""

from typing import TYPE_CHECKING

from mask2former.d2 import objects

__all__ = [
    "all_gather",
    "create_local_process_group",
    "gather",
    "get_local_rank",
    "get_local_size",
    "get_rank",
    "get_world_size",
    "is_main_process",
    "shared_random_seed",
    "synchronize",
]

if TYPE_CHECKING:
    from mask2former.d2.bundled.comm import *
else:
    globals().update(objects(__all__, bundled=("comm",), official="utils.comm"))
