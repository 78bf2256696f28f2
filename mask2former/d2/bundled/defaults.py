"""The Detectron2 keys this library reads, with Detectron2's names, types and defaults."""

from typing import Any

import torch

DEFAULTS: dict[str, Any] = {
    "VERSION": 2,  # of the config format
    "MODEL": {
        "DEVICE": "cuda" if torch.cuda.is_available() else "cpu",  # Detectron2: always "cuda"
        "META_ARCHITECTURE": "GeneralizedRCNN",  # name in META_ARCH_REGISTRY
        "WEIGHTS": "",  # checkpoint to start from; "" for none
        "PIXEL_MEAN": [103.530, 116.280, 123.675],  # in the channel order of INPUT.FORMAT
        "PIXEL_STD": [1.0, 1.0, 1.0],
        "BACKBONE": {
            "NAME": "build_resnet_backbone",  # name in BACKBONE_REGISTRY
            "FREEZE_AT": 2,  # freeze this many stages, the stem being the first
        },
        "RESNETS": {
            "DEPTH": 50,
            "OUT_FEATURES": ["res4"],
            "NUM_GROUPS": 1,  # > 1 makes a ResNeXt
            "NORM": "FrozenBN",  # see get_norm
            "WIDTH_PER_GROUP": 64,  # bottleneck width of res2 per group
            "STRIDE_IN_1X1": True,  # the stride sits in the first 1x1 convolution, else in the 3x3
            "RES5_DILATION": 1,
            "RES2_OUT_CHANNELS": 256,
            "STEM_OUT_CHANNELS": 64,
        },
        "SEM_SEG_HEAD": {
            "NAME": "SemSegFPNHead",  # name in SEM_SEG_HEADS_REGISTRY
            "IN_FEATURES": ["p2", "p3", "p4", "p5"],
            "IGNORE_VALUE": 255,  # label of pixels that count nowhere
            "NUM_CLASSES": 54,
            "CONVS_DIM": 128,
            "COMMON_STRIDE": 4,  # of the finest feature map of the pixel decoder
            "NORM": "GN",
            "LOSS_WEIGHT": 1.0,
        },
    },
    "INPUT": {
        "MIN_SIZE_TRAIN": (800,),  # shortest edge, in pixels
        "MIN_SIZE_TRAIN_SAMPLING": "choice",  # "choice": one of the sizes; "range": between two of them
        "MAX_SIZE_TRAIN": 1333,  # longest edge, in pixels
        "MIN_SIZE_TEST": 800,  # 0 turns resizing off
        "MAX_SIZE_TEST": 1333,
        "RANDOM_FLIP": "horizontal",  # "horizontal", "vertical" or "none"
        "CROP": {
            "ENABLED": False,
            "TYPE": "relative_range",  # see RandomCrop
            "SIZE": [0.9, 0.9],  # height, width, as TYPE says
        },
        "FORMAT": "BGR",  # channel order of images
    },
    "DATASETS": {
        "TRAIN": (),  # names in DatasetCatalog
        "TEST": (),
    },
    "DATALOADER": {
        "NUM_WORKERS": 4,
        "SAMPLER_TRAIN": "TrainingSampler",  # or "RepeatFactorTrainingSampler"
        "REPEAT_THRESHOLD": 0.0,  # of the latter: share of images below which a class is rare
        "REPEAT_SQRT": True,  # the root of how rare it is counts
        "ASPECT_RATIO_GROUPING": True,  # batches of wide images, or of others, where data sets say the sizes
        "FILTER_EMPTY_ANNOTATIONS": True,  # leave out training images without annotations
    },
    "SOLVER": {
        "LR_SCHEDULER_NAME": "WarmupMultiStepLR",
        "MAX_ITER": 40000,
        "BASE_LR": 0.001,
        "BASE_LR_END": 0.0,  # of WarmupCosineLR
        "MOMENTUM": 0.9,  # of SGD
        "NESTEROV": False,  # of SGD
        "WEIGHT_DECAY": 0.0001,
        "WEIGHT_DECAY_NORM": 0.0,  # of norm layers
        "GAMMA": 0.1,  # factor of the learning rate at each of STEPS
        "STEPS": (30000,),  # in iterations
        "WARMUP_FACTOR": 1.0 / 1000,  # the learning rate starts at this fraction
        "WARMUP_ITERS": 1000,
        "WARMUP_METHOD": "linear",  # "linear" or "constant"
        "CHECKPOINT_PERIOD": 5000,  # in iterations
        "IMS_PER_BATCH": 16,  # over all processes
        "AMP": {"ENABLED": False},
        "CLIP_GRADIENTS": {
            "ENABLED": False,
            "CLIP_TYPE": "value",  # "value", "norm" or "full_model"
            "CLIP_VALUE": 1.0,
            "NORM_TYPE": 2.0,
        },
    },
    "TEST": {
        "EVAL_PERIOD": 0,  # in iterations; 0 evaluates at the end only
        "DETECTIONS_PER_IMAGE": 100,
        "AUG": {
            "ENABLED": False,
            "MIN_SIZES": (400, 500, 600, 700, 800, 900, 1000, 1100, 1200),
            "MAX_SIZE": 4000,
            "FLIP": True,
        },
    },
    "OUTPUT_DIR": "./output",
    "SEED": -1,  # negative: drawn at random
    "CUDNN_BENCHMARK": False,
}
