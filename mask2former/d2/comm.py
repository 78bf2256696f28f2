"""Communication between processes; every function also works without a process group."""

from typing import TYPE_CHECKING

from mask2former.d2 import SOURCE

if TYPE_CHECKING or SOURCE == "bundled":
    from mask2former.d2.bundled.comm import (
        all_gather,
        create_local_process_group,
        gather,
        get_local_rank,
        get_local_size,
        get_rank,
        get_world_size,
        is_main_process,
        reduce_dict,
        shared_random_seed,
        synchronize,
    )
else:
    from detectron2.utils.comm import (
        all_gather,
        create_local_process_group,
        gather,
        get_local_rank,
        get_local_size,
        get_rank,
        get_world_size,
        is_main_process,
        reduce_dict,
        shared_random_seed,
        synchronize,
    )

__all__ = [
    "all_gather",
    "create_local_process_group",
    "gather",
    "get_local_rank",
    "get_local_size",
    "get_rank",
    "get_world_size",
    "is_main_process",
    "reduce_dict",
    "shared_random_seed",
    "synchronize",
]
