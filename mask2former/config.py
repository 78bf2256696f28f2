"""Every configuration key that this project adds to Detectron2's: its default and what it means."""

from __future__ import annotations

from mask2former.d2.config import CfgNode
from mask2former.d2.config import get_cfg as _get_d2_cfg


def get_cfg() -> CfgNode:
    """Return a new, complete configuration: Detectron2's keys and this project's, all at their defaults."""
    cfg = _get_d2_cfg()
    add_maskformer2_config(cfg)
    return cfg


def add_maskformer2_config(cfg: CfgNode) -> None:
    """Add this project's keys to `cfg` in place.

    `cfg` comes from `mask2former.d2.config.get_cfg()` or from Detectron2's own `get_cfg()`, with or without the
    keys of its DeepLab project, and keeps the values it already has for keys that both define.
    """
    _add_input(cfg)
    _add_datasets(cfg)
    _add_solver(cfg)
    _set_default(
        cfg.TEST,
        # Images of each data set that every evaluation draws beside their truth, in files and TensorBoard; 0 for none.
        PICTURES=8,
        # Keep what report.html shows beside the metrics, and write that page at the end of training.
        REPORT=True,
        # Side of the tiles in which the model sees an image, in evaluation and prediction, in pixels of the image as it
        # is resized for it; 0: it sees all at once. For images of many small objects, and crops as small in training.
        TILE_SIZE=0,
        TILE_STRIDE=0,  # from one tile to the next; 0: three quarters of a tile
    )
    _set_default(
        cfg.MODEL,
        COMPILE=False,  # torch.compile backbone and head; the first step, and the first of another size, take minutes
        FSDP=False,  # divide weights, gradients and optimiser state among processes: less memory, more traffic
        ACTIVATION_CHECKPOINTING=False,  # recompute activations of backbone and pixel decoder in the backward pass
        FREEZE=[],  # patterns of names of modules and parameters that stay as they are, such as "backbone.res2"
        # The classes in the order of the output: `name`, `color` (R, G, B) and `isthing` of each. Training writes here,
        # and into checkpoints, what DATASETS.TRAIN says; predictions are drawn from it.
        CATEGORIES=[],
    )
    if "LOGGERS" not in cfg:
        cfg.LOGGERS = CfgNode()
    _set_default(
        cfg.LOGGERS,
        NAMES=["json", "tensorboard"],  # where metrics go: json, csv, tensorboard, wandb, mlflow
        PROJECT="mask2former",  # of wandb; the experiment of mlflow
        RUN="",  # name of the run there; "" lets them invent one
    )
    if "MODEL_EMA" not in cfg:
        cfg.MODEL_EMA = CfgNode()
    _set_default(
        cfg.MODEL_EMA,
        ENABLED=False,  # keep a running average of the weights in training, evaluated and saved beside the weights
        DECAY=0.999,  # share of the average that a step leaves
        USE_EMA_WEIGHTS_FOR_EVAL_ONLY=False,  # evaluate and predict with the average that MODEL.WEIGHTS holds
    )
    if not cfg.key_is_deprecated("MODEL.SWIN.USE_CHECKPOINT"):  # published files may have it; see above
        cfg.register_deprecated_key("MODEL.SWIN.USE_CHECKPOINT")
    _add_backbones(cfg)
    _add_head(cfg)
    _add_mask_former(cfg)


def _set_default(node: CfgNode, **defaults: object) -> None:
    for key, value in defaults.items():
        if key not in node:
            node[key] = value


def _add_input(cfg: CfgNode) -> None:
    _set_default(
        cfg.INPUT,
        # Which registered mapper turns a dataset dict into a training example.
        DATASET_MAPPER_NAME="mask_former_semantic",
        # SSD's photometric distortion, in the resize-and-crop mappers.
        COLOR_AUG_SSD=False,
        # Pad training images to this multiple; -1 leaves them as they are (the model pads its batches anyway).
        SIZE_DIVISIBILITY=-1,
        # Large-scale jitter: side of the square crop, and the range of scales relative to it.
        IMAGE_SIZE=1024,
        MIN_SCALE=0.1,
        MAX_SCALE=2.0,
    )
    # Largest share of a crop that one category may fill; crops are drawn again, up to ten times, until it holds.
    _set_default(cfg.INPUT.CROP, SINGLE_CATEGORY_MAX_AREA=1.0)


def _add_datasets(cfg: CfgNode) -> None:
    # Files of data descriptions, whose data sets are registered before DATASETS.TRAIN and TEST are looked up. A path is
    # relative to the working folder, or else to that of the config file.
    _set_default(cfg.DATASETS, DESCRIPTIONS=())
    # How many images of each of DATASETS.TRAIN come for those of the others; () takes all images as one data set.
    _set_default(cfg.DATASETS, RATIOS=())


def _add_solver(cfg: CfgNode) -> None:
    _set_default(
        cfg.SOLVER,
        OPTIMIZER="ADAMW",  # ADAMW or SGD
        ACCUMULATION_STEPS=1,  # in how many parts a process takes its share of IMS_PER_BATCH: less memory, same step
        BACKBONE_MULTIPLIER=0.1,  # learning rate of the backbone relative to the rest
        WEIGHT_DECAY_EMBED=0.0,  # weight decay of embeddings (queries, levels)
        LAYER_DECAY=1.0,  # learning rate of each layer of the backbone relative to the layer behind it
        # Pairs [pattern of parameter names, number]: factors of the learning rate, and weight decays, of what they
        # match in place of what the keys above say; the last pattern that matches counts.
        LR_MULTIPLIERS=[],
        WEIGHT_DECAYS=[],
        CHECKPOINTS_TO_KEEP=0,  # so many of the periodic checkpoints that the run wrote stay, the newest; 0: all
        POLY_LR_POWER=0.9,
        POLY_LR_CONSTANT_ENDING=0.0,  # WarmupPolyLR never goes below this share of the base learning rate
        # A loss or gradient that is not finite ends the run ("stop"), or its step is left out ("skip"): at most
        # NONFINITE_LIMIT steps in a row.
        NONFINITE="stop",
        NONFINITE_LIMIT=10,
        # When a step, or a batch of an evaluation, has taken so many seconds, the log says where it is, at which file
        # each worker is that loads data, and what keeps the other processes; 0: never.
        WATCHDOG_SECONDS=300.0,
    )
    for name in ("ONE_CYCLE", "BEST_CHECKPOINT", "EARLY_STOP"):
        if name not in cfg.SOLVER:
            cfg.SOLVER[name] = CfgNode()
    # Save `model_best.pth` whenever an evaluation gives a better value of METRIC, such as "panoptic_seg/PQ"; "": never.
    # MODE: max if more is better, min if less is.
    _set_default(cfg.SOLVER.BEST_CHECKPOINT, METRIC="", MODE="max")
    # End training when METRIC was not better in the last PATIENCE evaluations.
    _set_default(cfg.SOLVER.EARLY_STOP, METRIC="", MODE="max", PATIENCE=10)
    # Of WarmupOneCycleLR: share of the run in which the learning rate rises, and how many times less it starts with.
    _set_default(cfg.SOLVER.ONE_CYCLE, PCT_START=0.3, DIV_FACTOR=25.0)
    # Type of autocast: float16 (with loss scaling) or bfloat16. On a CPU float16 means no autocast.
    _set_default(cfg.SOLVER.AMP, DTYPE="float16")


def _add_backbones(cfg: CfgNode) -> None:
    _set_default(
        cfg.MODEL.RESNETS,
        STEM_TYPE="basic",  # basic, or deeplab: three 3x3 convolutions
        RES4_DILATION=1,  # of all res4 blocks; read by build_resnet_deeplab_backbone only
        RES5_MULTI_GRID=[1, 1, 1],  # dilation of each res5 block relative to RES5_DILATION
    )
    if "SWIN" not in cfg.MODEL:
        cfg.MODEL.SWIN = CfgNode()
    _set_default(
        cfg.MODEL.SWIN,
        PRETRAIN_IMG_SIZE=224,  # sets the size of the absolute position table
        PATCH_SIZE=4,
        EMBED_DIM=96,
        DEPTHS=[2, 2, 6, 2],
        NUM_HEADS=[3, 6, 12, 24],
        WINDOW_SIZE=7,
        MLP_RATIO=4.0,
        QKV_BIAS=True,
        QK_SCALE=None,  # None: 1 / sqrt(head width)
        DROP_RATE=0.0,
        ATTN_DROP_RATE=0.0,
        DROP_PATH_RATE=0.3,  # stochastic depth of the last block; earlier ones grow linearly from 0
        APE=False,  # absolute position embedding
        PATCH_NORM=True,
        OUT_FEATURES=["res2", "res3", "res4", "res5"],
    )


def _add_head(cfg: CfgNode) -> None:
    _set_default(
        cfg.MODEL.SEM_SEG_HEAD,
        PIXEL_DECODER_NAME="BasePixelDecoder",
        PIXEL_DECODER_FLOAT32=False,  # run it in float32 also under autocast, as published: more time and memory
        MASK_DIM=256,  # channels of the per-pixel embeddings that queries are multiplied with
        TRANSFORMER_ENC_LAYERS=0,  # of MSDeformAttnPixelDecoder (6 in published models), TransformerEncoderPixelDecoder
        # Width of MSDeformAttnPixelDecoder's FFN. The published models have 1024 whatever DIM_FEEDFORWARD says.
        TRANSFORMER_ENC_DIM_FEEDFORWARD=1024,
        DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES=["res3", "res4", "res5"],
        DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS=4,
        DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS=8,
    )


def _add_mask_former(cfg: CfgNode) -> None:
    if "MASK_FORMER" not in cfg.MODEL:
        cfg.MODEL.MASK_FORMER = CfgNode()
    node = cfg.MODEL.MASK_FORMER
    _set_default(
        node,
        # Loss and matching weights (Sec. 4.1 of the paper uses 2, 5, 5).
        DEEP_SUPERVISION=True,
        NO_OBJECT_WEIGHT=0.1,
        CLASS_WEIGHT=1.0,
        DICE_WEIGHT=1.0,
        MASK_WEIGHT=20.0,
        # Weight of each class in the classification loss, "no object" apart; an empty list means 1 for all.
        WEIGHT_OF_EACH_CLASS=[],
        # Registered in CRITERION_REGISTRY and MATCHER_REGISTRY.
        CRITERION_NAME="SetCriterion",
        MATCHER_NAME="HungarianMatcher",
        # Transformer decoder.
        NHEADS=8,
        DROPOUT=0.1,  # of pixel decoders' encoders and StandardTransformerDecoder; the multi-scale decoder has none
        DIM_FEEDFORWARD=2048,
        ENC_LAYERS=0,  # layers of the encoder inside StandardTransformerDecoder
        DEC_LAYERS=6,  # multi-scale decoder: one more than its layers, since the learned queries predict too
        PRE_NORM=False,
        HIDDEN_DIM=256,
        NUM_OBJECT_QUERIES=100,  # PerPixelBaselinePlusHead: the number of classes
        ENFORCE_INPUT_PROJ=False,
        TRANSFORMER_DECODER_NAME="MultiScaleMaskedTransformerDecoder",
        TRANSFORMER_IN_FEATURE="res5",  # "multi_scale_pixel_decoder" for MultiScaleMaskedTransformerDecoder
        NUM_FEATURE_LEVELS=3,  # maps that a multi-scale decoder reads in turn, the coarsest of the pixel decoder
        # Images of a batch are padded to a multiple of this; negative: the backbone's own.
        SIZE_DIVISIBILITY=32,
        # Point sampling of matching and mask losses (Sec. 3.3 of the paper).
        TRAIN_NUM_POINTS=112 * 112,
        OVERSAMPLE_RATIO=3.0,
        IMPORTANCE_SAMPLE_RATIO=0.75,
    )
    if "TEST" not in node:
        node.TEST = CfgNode()
    _set_default(
        node.TEST,
        SEMANTIC_ON=True,
        INSTANCE_ON=False,
        PANOPTIC_ON=False,
        OBJECT_MASK_THRESHOLD=0.0,
        OVERLAP_THRESHOLD=0.0,
        # Resize mask logits to the output size before semantic inference instead of its scores afterwards.
        SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE=False,
        # Type of autocast of the model in evaluation: float32 (none), bfloat16 or float16.
        PRECISION="float32",
        # What making the outputs of an image may take beside the predictions and the outputs themselves, in MiB;
        # images are done in parts that fit. 0 is what suits the device: 32 on a CPU, 1024 on a GPU.
        MAX_MEMORY_MB=0,
        # For large images, and for evaluation: `sem_seg` is labels (height, width) in place of scores, and
        # `instances.pred_masks` is PackedMasks, one bit a pixel. Test-time augmentation needs scores.
        COMPACT_OUTPUTS=False,
        # `instances.pred_masks` is RunLengthMasks, COCO's run lengths, which take least memory of all.
        RUN_LENGTHS=False,
        # Score boundary AP and boundary PQ too (Cheng et al., "Boundary IoU", CVPR 2021).
        BOUNDARY_ON=False,
    )
