"""What can be found wrong before the first step: config, data and machine that do not fit together.

All dataset dicts are checked, which takes seconds for a million annotations; all files are looked for, by one
listing per folder. Pixel values are checked in `LABEL_MAPS_READ` label maps of each data set: reading all
would take minutes, and the mapper checks every one that it reads later.
"""

import logging
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mask2former.checkpoint import CheckpointError, check_config
from mask2former.config import get_cfg
from mask2former.d2 import comm
from mask2former.d2.config import CfgNode
from mask2former.d2.data import DatasetCatalog, MetadataCatalog
from mask2former.data.check import label_problem, mask_problem
from mask2former.data.images import missing_files
from mask2former.data.labels import read_labels
from mask2former.data.mappers import DATASET_MAPPER_REGISTRY
from mask2former.data.summary import CLASS_LISTS, ENTRIES, INSTANCE, PANOPTIC, SEMANTIC, entries, fullest_image
from mask2former.engine.accumulation import check_accumulation
from mask2former.engine.agreement import failing_together
from mask2former.engine.loggers import check_loggers
from mask2former.engine.metric_hooks import check_metrics
from mask2former.evaluation.build import check_outputs, find_builder
from mask2former.similar import did_you_mean
from mask2former.tiling import Tiles

logger = logging.getLogger(__name__)

DatasetDicts = list[dict[str, Any]]

LABEL_MAPS_READ = 50
NAMES_SHOWN = 10

SWITCHES = ("SEMANTIC_ON", "INSTANCE_ON", "PANOPTIC_ON")


class SetupError(ValueError):
    """Config, data and machine do not fit together. The message names the key or file and the fix."""


def check_setup(cfg: CfgNode, *, eval_only: bool = False) -> None:
    """Check what training (if `eval_only`, evaluation) needs; every process calls it, the main one works.

    Classes are checked for the meta-architectures `MaskFormer` and `SemanticSegmentor`, tasks for the first; what
    others read is not known here.

    Raises:
        SetupError: at the first problem.
    """
    with failing_together():
        if comm.is_main_process():
            check_machine(cfg, world_size=comm.get_world_size(), eval_only=eval_only)
            check_head(cfg, eval_only=eval_only)
            is_known = cfg.MODEL.META_ARCHITECTURE in ("MaskFormer", "SemanticSegmentor")
            if not eval_only:
                check_train_datasets(cfg, check_classes=is_known)
            if cfg.MODEL.META_ARCHITECTURE == "MaskFormer":
                check_tasks(cfg)
            check_test_datasets(cfg, check_classes=is_known)


def check_weights(cfg: CfgNode, path: Path) -> None:
    """Check that MODEL.WEIGHTS, a path, is there, and a folder of transformers holds the model of this config."""
    if not path.exists():
        raise SetupError(
            f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS!r} does not exist (looked from {Path.cwd()}). Correct the path, "
            "download the file, or set MODEL.WEIGHTS '' to start from random weights."
        )
    if path.is_dir():
        try:
            check_config(cfg, path)
        except CheckpointError as error:
            raise SetupError(f"MODEL.WEIGHTS: {error}") from error


def check_output_dir(cfg: CfgNode) -> None:
    """Make OUTPUT_DIR unless it is there, and check that files can be made in it."""
    try:
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cfg.OUTPUT_DIR):
            pass
    except OSError as error:
        raise SetupError(f"OUTPUT_DIR {cfg.OUTPUT_DIR!r} cannot be written: {error}. Choose another.") from error


def check_machine(cfg: CfgNode, *, world_size: int, eval_only: bool = False) -> None:
    """Check OUTPUT_DIR, the weights file, and that the batch can be divided among the processes."""
    check_output_dir(cfg)
    weights = cfg.MODEL.WEIGHTS
    if weights and "://" not in weights:
        check_weights(cfg, Path(weights).expanduser())
    batch = cfg.SOLVER.IMS_PER_BATCH
    if not eval_only and (batch < world_size or batch % world_size):
        raise SetupError(
            f"SOLVER.IMS_PER_BATCH is {batch}, which {world_size} processes cannot share equally. "
            f"Use a multiple of {world_size}."
        )
    if not eval_only:
        check_accumulation(cfg, world_size=world_size)
        check_metrics(cfg)
        check_loggers(cfg)


def check_head(cfg: CfgNode, *, eval_only: bool = False) -> None:
    """Check the head against its meta-architecture, decoders and mapper, as far as building it does not."""
    head, node = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    if cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor":
        if head.NAME == "MaskFormerHead":
            raise SetupError(
                "MODEL.META_ARCHITECTURE 'SemanticSegmentor' classifies pixels, which MaskFormerHead does not. Set it "
                "to 'MaskFormer', or MODEL.SEM_SEG_HEAD.NAME to 'PerPixelBaselineHead'."
            )
        if not eval_only and mapper_reads(cfg.INPUT.DATASET_MAPPER_NAME) not in (SEMANTIC, None):
            raise SetupError(
                "MODEL.META_ARCHITECTURE 'SemanticSegmentor' learns from label maps, which INPUT.DATASET_MAPPER_NAME "
                f"{cfg.INPUT.DATASET_MAPPER_NAME!r} does not give. Use 'mask_former_semantic'."
            )
    weights = node.WEIGHT_OF_EACH_CLASS
    if weights and (len(weights) != head.NUM_CLASSES or not all(math.isfinite(w) and w >= 0 for w in weights)):
        raise SetupError(
            f"MODEL.MASK_FORMER.WEIGHT_OF_EACH_CLASS is {str(list(weights))[:100]}, {len(weights)} weights for "
            f"{head.NUM_CLASSES} classes. Give each class a weight that is not negative, or none."
        )
    if head.NAME == "PerPixelBaselinePlusHead" and node.NUM_OBJECT_QUERIES != head.NUM_CLASSES:
        raise SetupError(
            f"PerPixelBaselinePlusHead has a query per class, but MODEL.MASK_FORMER.NUM_OBJECT_QUERIES is "
            f"{node.NUM_OBJECT_QUERIES} and MODEL.SEM_SEG_HEAD.NUM_CLASSES {head.NUM_CLASSES}. Set both to the number "
            "of classes."
        )
    if (
        head.NAME in ("MaskFormerHead", "PerPixelBaselinePlusHead")
        and node.TRANSFORMER_IN_FEATURE == "transformer_encoder"
        and head.PIXEL_DECODER_NAME == "BasePixelDecoder"
    ):
        raise SetupError(
            "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is 'transformer_encoder', but BasePixelDecoder has none. Set "
            "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME to 'TransformerEncoderPixelDecoder', or name a backbone feature."
        )


def check_train_datasets(cfg: CfgNode, *, check_classes: bool = True) -> None:
    """Check every data set of DATASETS.TRAIN against mapper and number of classes, and look for its files."""
    mapper = cfg.INPUT.DATASET_MAPPER_NAME
    if mapper not in DATASET_MAPPER_REGISTRY:
        names = [name for name, _ in DATASET_MAPPER_REGISTRY]
        raise SetupError(
            f"INPUT.DATASET_MAPPER_NAME {mapper!r} is not registered{did_you_mean(mapper, names, else_all=True)}"
        )
    if not cfg.DATASETS.TRAIN:
        raise SetupError("DATASETS.TRAIN is empty: name at least one registered data set")
    kind = mapper_reads(mapper)
    for name in cfg.DATASETS.TRAIN:
        dicts = load_dataset("DATASETS.TRAIN", name)
        if kind is not None:
            check_mapper(mapper, name, dicts)
        check_annotations(cfg, name, dicts, kinds=[kind] if kind else [], check_classes=check_classes)
        if kind in ENTRIES and not fullest_image(dicts, kind)[0]:
            raise SetupError(f"Data set {name!r}: none of its {len(dicts)} images has an annotation to learn from")
        log_dataset(name, dicts, kind)
        if cfg.MODEL.META_ARCHITECTURE == "MaskFormer" and kind in ENTRIES and not cfg.TEST.TILE_SIZE:
            check_queries(name, dicts, kind, cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES)
    unread = unread_input_keys(cfg)
    if unread:
        logger.warning("INPUT.DATASET_MAPPER_NAME %s does not read %s", mapper, ", ".join(unread))


def check_test_datasets(cfg: CfgNode, *, check_classes: bool = True) -> None:
    """Check the files of every data set of DATASETS.TEST, its number of classes, and its ground truth."""
    for name in cfg.DATASETS.TEST:
        dicts = load_dataset("DATASETS.TEST", name)
        class_list = getattr(find_builder(name), "class_list", None)
        if class_list and check_classes:
            check_class_count(name, class_list, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
        fitting = [kind for kind in CLASS_LISTS if class_list in (None, CLASS_LISTS[kind])]
        kinds = [kind for kind in fitting if all(kind in item for item in dicts)]
        check_annotations(cfg, name, dicts, kinds=kinds, check_classes=check_classes)
        log_dataset(name, dicts, kinds[0] if kinds else None)
        if kinds and kinds[0] in ENTRIES and not fullest_image(dicts, kinds[0])[0]:
            logger.warning("Data set %r: none of its %d images has an annotation to score", name, len(dicts))


def check_annotations(
    cfg: CfgNode, name: str, dicts: DatasetDicts, *, kinds: Sequence[str], check_classes: bool
) -> None:
    """Check files, number of classes and labels of what a data set has of the given kinds of annotation."""
    num_classes, ignore_value = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    if check_classes:
        for kind in kinds:
            check_class_count(name, CLASS_LISTS[kind], num_classes)
            check_categories(name, dicts, kind, num_classes)
    check_files(name, dicts, keys=("file_name", *(kind for kind in kinds if kind != INSTANCE)))
    if check_classes and SEMANTIC in kinds:
        check_ignore_label(name, ignore_value)
        check_label_maps(dicts, num_classes, ignore_label=ignore_value)


def log_dataset(name: str, dicts: DatasetDicts, kind: str | None) -> None:
    """Log the size of a data set."""
    objects = sum(len(entries(item, kind or "")) for item in dicts)
    classes = MetadataCatalog.get(name).get(CLASS_LISTS.get(kind or "", "stuff_classes")) or ()
    logger.info(
        "Data set %s: %d images, %s%d classes",
        *(name, len(dicts), f"{objects} objects, " if kind in ENTRIES else "", len(classes)),
    )


def check_queries(name: str, dicts: DatasetDicts, kind: str, queries: int) -> None:
    """Warn of images with more objects than the model can find."""
    largest, file = fullest_image(dicts, kind)
    if largest > queries:
        logger.warning(
            "Data set %r: %s has %d objects, of which %d queries can learn and find %d at most. Set "
            "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES to %d or more.",
            name, file, largest, queries, queries, largest,
        )  # fmt: skip


def unread_input_keys(cfg: CfgNode) -> list[str]:
    """Keys of INPUT that differ from their defaults and that building the mapper does not read."""
    read: set[str] = set()

    class Recording(CfgNode):
        def __getattr__(self, name: str) -> Any:
            read.add(name)
            return super().__getattr__(name)

    recording = cfg.clone()
    recording.defrost()
    recording.INPUT = Recording(recording.INPUT)
    for is_train in (True, False):
        DATASET_MAPPER_REGISTRY.get(cfg.INPUT.DATASET_MAPPER_NAME)(recording, is_train)
    changed = _differences(cfg.INPUT, get_cfg().INPUT, "INPUT.")
    return [key for key in changed if key.rpartition(".")[2] not in {*read, "DATASET_MAPPER_NAME"}]


def _differences(node: CfgNode, defaults: CfgNode, prefix: str) -> list[str]:
    keys = []
    for key, value in node.items():
        if isinstance(value, CfgNode):
            keys += _differences(value, defaults[key], f"{prefix}{key}.")
        elif key in defaults and tuple(_listed(value)) != tuple(_listed(defaults[key])):
            keys.append(f"{prefix}{key}")
    return keys


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


def load_dataset(key: str, name: str) -> DatasetDicts:
    """The dataset dicts of a registered name; `key` is the config key that holds it."""
    if name not in DatasetCatalog.list():
        known = DatasetCatalog.list()
        raise SetupError(
            f"{key}: data set {name!r} is not registered{did_you_mean(name, known, else_all=True)}. Name the module "
            "that registers it with --import MODULE, or correct the name."
        )
    try:
        dicts = DatasetCatalog.get(name)
    except FileNotFoundError as error:
        raise SetupError(f"{key}: data set {name!r} cannot be read: {error}") from error
    if not dicts:
        raise SetupError(f"{key}: data set {name!r} holds no images")
    return dicts


def mapper_reads(name: str) -> str | None:
    """The key of dataset dicts that a mapper makes targets of; None where it does not say, as plug-ins need not."""
    return getattr(DATASET_MAPPER_REGISTRY.get(name), "reads", None) if name in DATASET_MAPPER_REGISTRY else None


def check_mapper(mapper: str, name: str, dicts: DatasetDicts) -> None:
    """Check that every image has the kind of annotation that the mapper reads."""
    kind = mapper_reads(mapper)
    lacking = [item["file_name"] for item in dicts if kind not in item]
    if not lacking:
        return
    found = {key for item in dicts for key in CLASS_LISTS if key in item}
    fitting = [other for other, _ in DATASET_MAPPER_REGISTRY if mapper_reads(other) in found - {kind}]
    fix = f"Use {' or '.join(fitting)}, or another data set." if fitting else "Use another data set."
    raise SetupError(
        f"INPUT.DATASET_MAPPER_NAME is {mapper!r}, which reads {kind!r}, but {len(lacking)} of {len(dicts)} "
        f"images of data set {name!r} lack it (the first: {lacking[0]}). "
        f"The set has {', '.join(sorted(found)) or 'nothing'} to learn from. {fix}"
    )


def check_class_count(name: str, class_list: str, num_classes: int) -> None:
    """Check MODEL.SEM_SEG_HEAD.NUM_CLASSES against the classes that a data set's metadata lists, if any."""
    classes = MetadataCatalog.get(name).get(class_list)
    if classes is None or len(classes) == num_classes:
        return
    shown = ", ".join(classes[:NAMES_SHOWN]) + (", ..." if len(classes) > NAMES_SHOWN else "")
    raise SetupError(
        f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {num_classes}, but data set {name!r} has {len(classes)} classes "
        f"({shown}). Set MODEL.SEM_SEG_HEAD.NUM_CLASSES to {len(classes)}."
    )


def check_ignore_label(name: str, ignore_value: int) -> None:
    """Check MODEL.SEM_SEG_HEAD.IGNORE_VALUE against the label that a data set's metadata says to ignore."""
    ignore_label = MetadataCatalog.get(name).get("ignore_label", 255)
    if ignore_label != ignore_value:
        raise SetupError(
            f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {ignore_value}, but data set {name!r} marks pixels to ignore with "
            f"{ignore_label}. Set MODEL.SEM_SEG_HEAD.IGNORE_VALUE to {ignore_label}."
        )


def check_categories(name: str, dicts: DatasetDicts, kind: str, num_classes: int) -> None:
    """Check that the category ids of all segments or instances lie in [0, num_classes)."""
    if kind not in ENTRIES:
        return
    for item in dicts:
        for entry in item.get(ENTRIES[kind], ()):
            if not 0 <= entry["category_id"] < num_classes:
                raise SetupError(
                    f"{item.get(PANOPTIC, item['file_name'])}: category_id {entry['category_id']} of data "
                    f"set {name!r} is outside 0..{num_classes - 1}. Correct the annotation, or register the "
                    "set with all its classes and set MODEL.SEM_SEG_HEAD.NUM_CLASSES to their number."
                )


def check_files(name: str, dicts: DatasetDicts, *, keys: Sequence[str]) -> None:
    """Check that all files under `keys` of the dicts exist; the error lists the first ten that do not."""
    missing = missing_files(item[key] for item in dicts for key in keys if key in item)
    if missing:
        shown = "\n  ".join(missing[:NAMES_SHOWN])
        more = f"\n  and {len(missing) - NAMES_SHOWN} more" if len(missing) > NAMES_SHOWN else ""
        raise SetupError(
            f"{len(missing)} files of data set {name!r} are missing:\n  {shown}{more}\nComplete the data set, or "
            "let the environment variable DETECTRON2_DATASETS name the folder that holds it."
        )


def check_label_maps(dicts: DatasetDicts, num_classes: int, *, ignore_label: int) -> None:
    """Check the pixel values of `LABEL_MAPS_READ` label maps, spread evenly over the data set."""
    step = max(1, len(dicts) // LABEL_MAPS_READ)
    found: set[int] = set()
    for item in dicts[::step][:LABEL_MAPS_READ]:
        found.update(np.unique(read_labels(item)).tolist())
        problem = label_problem(found, num_classes, ignore_label)
        if problem:
            raise SetupError(f"{item[SEMANTIC]}: {problem}")
    problem = mask_problem(found, num_classes, ignore_label)
    if problem:
        raise SetupError(f"{dicts[0][SEMANTIC]} and the other label maps {problem}")


def check_tasks(cfg: CfgNode) -> None:
    """Check MODEL.MASK_FORMER.TEST against what the data sets can train and score."""
    test = cfg.MODEL.MASK_FORMER.TEST
    prefix = "MODEL.MASK_FORMER.TEST"
    if not any(test[switch] for switch in SWITCHES):
        raise SetupError(f"The model would output nothing: set one of {', '.join(SWITCHES)} of {prefix} to True")
    for name in cfg.DATASETS.TRAIN[:1]:
        if test.PANOPTIC_ON and MetadataCatalog.get(name).get("thing_dataset_id_to_contiguous_id") is None:
            raise SetupError(
                f"{prefix}.PANOPTIC_ON is True, but the metadata of data set {name!r} does not say which "
                f"classes are things (thing_dataset_id_to_contiguous_id). Set {prefix}.PANOPTIC_ON False, or "
                "use a panoptic data set."
            )
    for name in cfg.DATASETS.TEST:
        try:
            check_outputs(cfg, name)
        except ValueError as error:
            raise SetupError(str(error)) from error
    if cfg.TEST.AUG.ENABLED and cfg.DATASETS.TEST and (test.COMPACT_OUTPUTS or not test.SEMANTIC_ON):
        raise SetupError(
            f"TEST.AUG.ENABLED averages semantic scores: set {prefix}.SEMANTIC_ON True and {prefix}.COMPACT_OUTPUTS "
            "False, or TEST.AUG.ENABLED False"
        )
    check_tiles(cfg)


def check_tiles(cfg: CfgNode) -> None:
    """Check TEST.TILE_SIZE and TILE_STRIDE, and what cannot be done in tiles."""
    if not cfg.TEST.TILE_SIZE:
        return
    try:
        Tiles(cfg.TEST.TILE_SIZE, cfg.TEST.TILE_STRIDE or None)
    except ValueError as error:
        raise SetupError(f"TEST.TILE_SIZE and TEST.TILE_STRIDE: {error}") from error
    if cfg.TEST.AUG.ENABLED:
        raise SetupError(
            "TEST.AUG.ENABLED looks at whole images, TEST.TILE_SIZE at tiles: set one of them to False or 0"
        )
    test = cfg.MODEL.MASK_FORMER.TEST
    if test.SEMANTIC_ON and test.COMPACT_OUTPUTS:
        raise SetupError(
            "TEST.TILE_SIZE takes the mean of semantic scores: set MODEL.MASK_FORMER.TEST.COMPACT_OUTPUTS or "
            "SEMANTIC_ON False, or TEST.TILE_SIZE 0"
        )
