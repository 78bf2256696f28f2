"""Settings that follow from the data: pure functions from a summary of it to keys, values and reasons.

Each function gives the settings of one kind. A key that the user has given is never replaced: `derive` leaves it out,
and what follows from it (the learning rate from the batch, the steps from the length of the run) follows from the
user's value.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mask2former.d2.config import CfgNode
from mask2former.data.summary import INSTANCE, PANOPTIC, SEMANTIC, DataSummary, Size

MAPPERS = {INSTANCE: "coco_instance_lsj", PANOPTIC: "coco_panoptic_lsj", SEMANTIC: "mask_former_semantic"}
SWITCHES = {
    INSTANCE: ("INSTANCE_ON",),
    PANOPTIC: ("SEMANTIC_ON", "INSTANCE_ON", "PANOPTIC_ON"),
    SEMANTIC: ("SEMANTIC_ON",),
}
MARGIN = 1.2
"""Queries for each object of the fullest image."""
MULTIPLE = 32
"""Sides of crops are multiples of the coarsest stride."""
SMALL = 16
"""Pixels of the model's input that the side of a small object should have; its finest map has a stride of 4."""
JITTER = tuple(round(0.1 * step, 1) for step in range(5, 21))
"""Scales of the short side of semantic training, as published for ADE20K and Cityscapes."""
EPOCHS, SAMPLES = 50, 24000
"""The length of a run unless given: as published for COCO, but at least so many images with repetitions."""
EVALUATIONS = 10
"""At most so many in a run."""


class Setting(NamedTuple):
    """A config key, its value, and why."""

    key: str
    value: Any
    reason: str


class Recipe(NamedTuple):
    """What a model's own settings say of its training: learning rate, batch, and where in the run the rate falls."""

    rate: float
    batch: int
    steps: tuple[float, ...]

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Recipe:
        """Of a config file as it is, before anything is derived or given."""
        solver = cfg.SOLVER
        return cls(solver.BASE_LR, solver.IMS_PER_BATCH, tuple(step / solver.MAX_ITER for step in solver.STEPS))


class Limits(NamedTuple):
    """What a step can take.

    Attributes:
        crop: side of square crops; images are scaled to twice as much at most.
        pixels: of crops of label maps.
        short: short side that images with label maps are scaled to, before it varies.
    """

    crop: int
    pixels: int
    short: int


ON_GPU = Limits(1024, 512 * 1024, 1024)
ON_CPU = Limits(512, 384 * 512, 512)
ON_CPU_FROM_SCRATCH = Limits(128, 128 * 192, 192)


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What settings follow from beside the data.

    Attributes:
        recipe: of the model.
        on_gpu: whether training has a GPU.
        pretrained: whether it starts from weights.
        processors: CPU cores.
        epochs: None for what suits the data.
    """

    recipe: Recipe
    on_gpu: bool
    pretrained: bool
    processors: int
    epochs: float | None = None

    @property
    def place(self) -> str:
        """Where training runs, for reasons."""
        return "GPU" if self.on_gpu else "CPU" if self.pretrained else "CPU from random weights"

    @property
    def limits(self) -> Limits:
        """As published on a GPU; on a CPU what takes seconds a step, and less where all is to be learnt."""
        return ON_GPU if self.on_gpu else ON_CPU if self.pretrained else ON_CPU_FROM_SCRATCH


Rule = Callable[[CfgNode, DataSummary, Conditions], Iterable[Setting]]


def derive(
    cfg: CfgNode, data: DataSummary, conditions: Conditions, rules: Sequence[Rule], given: Collection[str] = ()
) -> list[Setting]:
    """The settings of each of `rules`, in turn, which `cfg` (unfrozen) takes up; keys in `given` keep their value."""
    settings = []
    for rule in rules:
        for setting in rule(cfg, data, conditions):
            if setting.key not in given:
                settings.append(setting)
                set_key(cfg, setting.key, setting.value)
    return settings


def task_settings(cfg: CfgNode, data: DataSummary, conditions: Conditions) -> Iterable[Setting]:
    """Mapper, outputs and number of classes."""
    task = {INSTANCE: "instances", PANOPTIC: "panoptic segments", SEMANTIC: "label maps"}[data.kind]
    yield Setting("INPUT.DATASET_MAPPER_NAME", MAPPERS[data.kind], f"annotated with {task}")
    yield Setting("MODEL.SEM_SEG_HEAD.NUM_CLASSES", len(data.classes), "classes of the data")
    for switch in ("SEMANTIC_ON", "INSTANCE_ON", "PANOPTIC_ON"):
        value = switch in SWITCHES[data.kind]
        yield Setting(f"MODEL.MASK_FORMER.TEST.{switch}", value, f"{'can' if value else 'cannot'} be scored on {task}")
    if data.kind in (INSTANCE, PANOPTIC) and data.empty:
        reason = f"{data.empty} images without objects teach what is none"
        yield Setting("DATALOADER.FILTER_EMPTY_ANNOTATIONS", False, reason)


def query_settings(cfg: CfgNode, data: DataSummary, conditions: Conditions) -> Iterable[Setting]:
    """More queries than the model sees objects at once, and as many detections."""
    key, node = "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", cfg.MODEL.MASK_FORMER
    most, view, file = data.most[0], "an image", os.path.basename(data.most[1])
    if cfg.TEST.TILE_SIZE:
        most, view = math.ceil(most * (cfg.TEST.TILE_SIZE / cfg.INPUT.MAX_SIZE_TEST) ** 2), "a tile"
        file = f"a tile of {file}"
    needed = math.ceil(MARGIN * most)
    if (most if conditions.pretrained else needed) <= node.NUM_OBJECT_QUERIES:
        yield Setting(key, node.NUM_OBJECT_QUERIES, f"enough for at most {most} objects in {view}")
    else:
        yield Setting(key, 50 * math.ceil(needed / 50), f"a fifth more than the {most} objects of {file}")
    if data.kind != SEMANTIC and most > cfg.TEST.DETECTIONS_PER_IMAGE:
        yield Setting("TEST.DETECTIONS_PER_IMAGE", node.NUM_OBJECT_QUERIES, f"up to {most} objects are to be found")


def size_settings(cfg: CfgNode, data: DataSummary, conditions: Conditions) -> Iterable[Setting]:
    """Crops and scales: as large as images are, enlarged where objects are small, within what a step can take."""
    return _semantic_sizes(data, conditions) if data.kind == SEMANTIC else _jitter_sizes(cfg, data, conditions)


def _jitter_sizes(cfg: CfgNode, data: DataSummary, conditions: Conditions) -> Iterable[Setting]:
    """Large-scale jitter: the longest side of images is scaled to a range of multiples of the crop."""
    natural, small, limits = max(data.median), data.relative[0], conditions.limits
    side, why = natural, f"the median image is {_size(data.median)}"
    if small and small * natural < SMALL:
        side = min(2 * natural, _multiple(SMALL / small))
        why += f", a tenth of the objects is below {max(1, round(small * natural))} pixels wide"
    side = min(side, 2 * limits.crop)
    crop = min(_multiple(side), limits.crop)
    if crop < _multiple(side):
        why += f"; crops of {crop} of it at {side} on a {conditions.place}"
    elif side > natural:
        why += f": enlarged {side / natural:.1f} times"
    yield Setting("INPUT.IMAGE_SIZE", crop, why)
    crop = cfg.INPUT.IMAGE_SIZE
    low, high = (0.1, 2.0) if data.relative[2] > 8 * small else (0.5, 1.5)
    spread = f"objects' sizes differ {data.relative[2] / small:.0f}-fold" if small else "there are no objects"
    reason = f"{low} to {high} times the size of the test: {spread}"
    yield Setting("INPUT.MIN_SCALE", round(low * side / crop, 3), reason)
    yield Setting("INPUT.MAX_SCALE", round(high * side / crop, 3), reason)
    for key in ("INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST"):
        yield Setting(key, _multiple(side), "of the longest side: the middle of the scales of training")
    if not conditions.pretrained and crop < side:
        yield Setting(
            "TEST.TILE_SIZE", crop, "the test sees as much at once as a crop, where objects' places are learnt"
        )


def _semantic_sizes(data: DataSummary, conditions: Conditions) -> Iterable[Setting]:
    """Published ranges about the images' own size: 0.5 to 2 times the short side, in crops of the image's shape."""
    short, long = sorted(data.median)
    ratio = min(long / short, 2.0)
    size = min(short, conditions.limits.short)
    why = f"the median image is {_size(data.median)}"
    if size < short:
        why += f"; at most {size} on a {conditions.place}"
    yield Setting("INPUT.MIN_SIZE_TRAIN", [int(scale * size) for scale in JITTER], f"0.5 to 2 times {size}: {why}")
    longest = 4 * _multiple(size * long / short)
    yield Setting("INPUT.MAX_SIZE_TRAIN", longest, "beyond the longest side of usual shapes at twice the size")
    height = min(_multiple(size), int(math.sqrt(conditions.limits.pixels / ratio)) // MULTIPLE * MULTIPLE)
    crop = [height, _multiple(height * ratio)]
    if data.median[0] > data.median[1]:
        crop.reverse()
    yield Setting("INPUT.CROP.ENABLED", True, "steps of equal size")
    yield Setting("INPUT.CROP.TYPE", "absolute", "in pixels")
    yield Setting("INPUT.CROP.SIZE", crop, f"height and width, of the image's shape, for a {conditions.place}")
    yield Setting("INPUT.SIZE_DIVISIBILITY", -1, "the model pads batches to their largest crop")
    yield Setting("INPUT.COLOR_AUG_SSD", True, "as published for label maps")
    yield Setting("INPUT.MIN_SIZE_TEST", size, "the middle of the sizes of training")
    yield Setting("INPUT.MAX_SIZE_TEST", longest, "as in training")


def worker_settings(cfg: CfgNode, data: DataSummary, conditions: Conditions) -> Iterable[Setting]:
    """No more workers than there are cores to spare."""
    spare = conditions.processors if conditions.on_gpu else conditions.processors - 1
    workers = max(0, min(cfg.DATALOADER.NUM_WORKERS, spare))
    if workers < cfg.DATALOADER.NUM_WORKERS:
        yield Setting("DATALOADER.NUM_WORKERS", workers, f"of {conditions.processors} CPU cores")


def batch_limit(cfg: CfgNode, data: DataSummary, shares: int) -> int:
    """The largest batch that makes sense, a multiple of `shares`: the config's, and no more than there are images."""
    return max(shares, min(cfg.SOLVER.IMS_PER_BATCH, data.images) // shares * shares)


def rate_settings(cfg: CfgNode, data: DataSummary, conditions: Conditions) -> Iterable[Setting]:
    """The learning rate in proportion to the batch."""
    rate, batch, _ = conditions.recipe
    value = float(f"{rate * cfg.SOLVER.IMS_PER_BATCH / batch:.3g}")
    yield Setting("SOLVER.BASE_LR", value, f"{rate:g} at a batch of {batch}, in proportion")


def length_settings(cfg: CfgNode, data: DataSummary, conditions: Conditions) -> Iterable[Setting]:
    """Iterations from epochs, the steps of the schedule and the warm-up from these; SOLVER.IMS_PER_BATCH is known."""
    solver = cfg.SOLVER
    epochs = conditions.epochs
    reason = f"{epochs:g} epochs of {data.images} images" if epochs else ""
    if epochs is None:
        epochs = max(EPOCHS, math.ceil(SAMPLES / data.images))
        reason = f"{epochs} epochs of {data.images} images"
        reason += ", as published for COCO" if epochs == EPOCHS else f": {SAMPLES} images with repetitions"
    yield Setting("SOLVER.MAX_ITER", max(1, round(epochs * data.images / solver.IMS_PER_BATCH)), reason)
    length = solver.MAX_ITER
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        steps = sorted({max(1, round(share * length)) for share in conditions.recipe.steps})
        where = " and ".join(f"{share:.0%}" for share in conditions.recipe.steps)
        yield Setting("SOLVER.STEPS", steps, f"the learning rate falls at {where} of the run, as published")
    yield Setting("SOLVER.WARMUP_ITERS", min(500, length // 20), "a twentieth of the run, at most 500")
    yield Setting("SOLVER.WARMUP_FACTOR", 0.01, "new class rows and queries begin at random")


def evaluation_settings(cfg: CfgNode, data: DataSummary, validation: DataSummary | None) -> Iterable[Setting]:
    """Evaluations and checkpoints in equal distances, as many as take a fifth of the time of training, at most ten."""
    count, length = EVALUATIONS, cfg.SOLVER.MAX_ITER
    if validation is not None:
        height, width = crop_size(cfg, data)
        short, long = sorted(validation.median)
        scale = min(cfg.INPUT.MIN_SIZE_TEST / short, cfg.INPUT.MAX_SIZE_TEST / long)
        steps = validation.images * short * long * scale**2 / (2 * height * width)  # no backward pass, but full masks
        steps *= max(1.0, cfg.TEST.DETECTIONS_PER_IMAGE / 100) if data.kind != SEMANTIC else 1.0
        count = max(1, min(count, int(0.2 * cfg.SOLVER.IMS_PER_BATCH * length / steps)))
    period = math.ceil(length / count)
    reason = f"{count} in the run" if validation else "nothing to validate on"
    yield Setting("TEST.EVAL_PERIOD", period if validation else 0, reason)
    yield Setting("SOLVER.CHECKPOINT_PERIOD", period, f"{count} in the run")


def crop_size(cfg: CfgNode, data: DataSummary) -> Size:
    """The largest (height, width) that training meets."""
    if data.kind != SEMANTIC:
        return cfg.INPUT.IMAGE_SIZE, cfg.INPUT.IMAGE_SIZE
    crop = cfg.INPUT.CROP
    height, width = crop.SIZE if crop.ENABLED and crop.TYPE.startswith("absolute") else data.largest
    return int(height), int(width)


def get_key(cfg: CfgNode, key: str) -> Any:
    """The value of a dotted key."""
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def set_key(cfg: CfgNode, key: str, value: Any) -> None:
    """Set a dotted key that exists; a list stands for a tuple where the config has one, and the other way."""
    *parents, name = key.split(".")
    for parent in parents:
        cfg = cfg[parent]
    kind = type(cfg[name])
    cfg[name] = kind(value) if isinstance(value, list | tuple) and kind in (list, tuple) else value


def _multiple(side: float) -> int:
    return MULTIPLE * math.ceil(side / MULTIPLE)


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"
