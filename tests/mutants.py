"""Changes that tests must notice: what a training or a data set silently suffers from. `tests/mutate.py` makes them."""

from tests.mutate import Mutant

TRAINER, OPTIMIZER, SCHEDULES = "engine/trainer.py", "engine/optimizer.py", "engine/schedules.py"
MODEL, CRITERION, MATCHER = "modeling/mask_former.py", "modeling/criterion.py", "modeling/matcher.py"
MASKED = "modeling/transformer_decoder/multi_scale_masked.py"
ENCODER = "modeling/pixel_decoder/deformable_encoder.py"
AUGMENTATION, MAPPERS, LOADER, TARGETS = "data/augmentation.py", "data/mappers.py", "data/loader.py", "data/targets.py"
EXAMPLE, ADE20K, COCO = "data/example.py", "data/prepare/ade20k.py", "data/datasets/coco.py"
IMAGES, MASKS, POINTS = "data/images.py", "modeling/masks.py", "modeling/points.py"
PAIRS = "modeling/pairs.py"
STEP = ("engine/test_precision.py", "engine/test_seed.py", "engine/test_trainer.py")

MUTANTS = [
    # engine
    Mutant("clipping left out", OPTIMIZER, 'if kind == "full_model":', 'if kind == "none":'),
    Mutant("steps of other loops do not clip", OPTIMIZER, "if not self._is_clipped:", "if False:"),
    Mutant("clipping at 0", OPTIMIZER, "clip.ENABLED and clip.CLIP_VALUE > 0", "clip.ENABLED"),
    Mutant("autocast left out", TRAINER, "with self.precision.autocast():", "if True:", STEP),
    Mutant("unscale left out", TRAINER, "self.scaler.unscale_(self.optimizer)", "pass", STEP),
    Mutant(
        "seed equal on all ranks",
        TRAINER,
        "self.cfg.SEED, self.iter, comm.get_rank()",
        "self.cfg.SEED, self.iter",
        STEP,
    ),
    Mutant("seed equal in all steps", TRAINER, "self.cfg.SEED, self.iter, comm", "self.cfg.SEED, 0, comm", STEP),
    Mutant("schedule never steps", TRAINER, "self.scheduler.step()", "pass"),
    Mutant("gradients pile up", TRAINER, "self.optimizer.zero_grad(set_to_none=True)", "pass"),
    Mutant("backbone learns as the rest", OPTIMIZER, "base_lr * backbone_multiplier if", "base_lr if"),
    Mutant("norms decay", OPTIMIZER, "decay = weight_decay_norm", "pass"),
    Mutant("embeddings decay", OPTIMIZER, "decay = weight_decay_embed", "pass"),
    Mutant("position tables decay", OPTIMIZER, "            decay = 0.0", "            pass"),
    Mutant(
        "warm-up ends one step late",
        SCHEDULES,
        "    if iteration >= iters:\n        return schedule",
        "    if iteration > iters:\n        return schedule",
    ),
    Mutant("steps one late", SCHEDULES, "bisect_right(steps, iteration)", "bisect_right(steps, iteration - 1)"),
    Mutant("poly without power", SCHEDULES, "iteration / max_iter) ** power", "iteration / max_iter)"),
    Mutant(
        "checkpoints one step late",
        "engine/hooks.py",
        "elif self.period > 0 and done % self.period == 0:",
        "elif self.period > 0 and done % self.period == 1:",
    ),
    # model
    Mutant("targets not padded to the batch", MODEL, ".padded(*size)", ""),
    Mutant("masks of other sizes than the image", MODEL, "if tuple(masks.shape[1:]) != size:", "if False:"),
    Mutant(
        "weight_dict ignored",
        MODEL,
        "return weighted_losses(self.criterion, outputs, targets)",
        "return self.criterion(outputs, targets)",
    ),
    Mutant("images not normalised", MODEL, "(image - self.pixel_mean) / self.pixel_std", "image - self.pixel_mean"),
    Mutant("test precision ignored", MODEL, "torch.autocast(self.device.type, dtype=self.test_dtype)", "nullcontext()"),
    Mutant("things not kept apart", MODEL, "return set(ids.values())", "return set()"),
    Mutant(
        "sampling offsets in bf16",
        ENCODER,
        "device_type=query.device.type, enabled=False",
        "device_type=query.device.type, enabled=torch.is_autocast_enabled(query.device.type)",
    ),
    Mutant(
        "offsets start elsewhere", ENCODER, "torch.arange(1, self.num_points + 1", "torch.arange(0, self.num_points"
    ),
    Mutant(
        "directions not on the square",
        ENCODER,
        "    directions /= directions.abs().amax(dim=1, keepdim=True)\n",
        "    pass\n",
    ),
    Mutant("encoder FFN default initialisation", ENCODER, "nn.init.xavier_uniform_(self.linear1.weight)", "pass"),
    Mutant("encoder values default initialisation", ENCODER, "nn.init.xavier_uniform_(projection.weight)", "pass"),
    Mutant(
        "pixel corners for centres",
        ENCODER,
        "y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5)",
        "y = (torch.arange(height, device=device, dtype=torch.float32) + 0.0)",
    ),
    Mutant("encoder without positions", ENCODER, "self.self_attn(x + position,", "self.self_attn(x,"),
    Mutant("attention outside the mask", MASKED, "mask_logits.flatten(2) >= 0", "mask_logits.flatten(2) <= 0"),
    Mutant("empty masks see nothing", MASKED, "(inside | ~inside.any(dim=2, keepdim=True))", "inside"),
    Mutant("every layer reads the first level", MASKED, "level = i % NUM_LEVELS", "level = 0"),
    Mutant("levels without embedding", MASKED, " + self.level_embed.weight[level]", ""),
    Mutant(
        "values carry positions",
        MASKED,
        "feature.device), value",
        "feature.device), value + sine_tokens(height, width, channels, feature.device)",
    ),
    Mutant("one layer too many", MASKED, "node.DEC_LAYERS - 1", "node.DEC_LAYERS"),
    # loss
    Mutant(
        "count of masks over ranks x1000",
        CRITERION,
        "(total / comm.get_world_size())",
        "(1000 * total / comm.get_world_size())",
    ),
    Mutant("no object as any class", CRITERION, "[*weights, no_object_weight]", "[*weights, 1.0]"),
    Mutant(
        "classes not weighted in the mean",
        CRITERION,
        "[losses, self.empty_weight[classes]]",
        "[losses, losses * 0 + 1]",
    ),
    Mutant(
        "dice without smoothing",
        CRITERION,
        "(2 * overlap + 1) / (probabilities.sum(dim=-1) + targets.sum(dim=-1) + 1)",
        "(2 * overlap) / (probabilities.sum(dim=-1) + targets.sum(dim=-1))",
    ),
    Mutant("dice smoothed by two", CRITERION, "(2 * overlap + 1)", "(2 * overlap + 2)"),
    Mutant("dice smoothed above alone", CRITERION, "targets.sum(dim=-1) + 1)", "targets.sum(dim=-1))"),
    Mutant("masks of all ranks together", CRITERION, "(total / comm.get_world_size())", "total"),
    Mutant("masks of one rank", CRITERION, "    torch.distributed.all_reduce(total)\n", ""),
    Mutant(
        "NaN of one prediction in all",
        CRITERION,
        "torch.where(own, values.unsqueeze(1), 0.0)",
        "(own * values.unsqueeze(1))",
    ),
    Mutant(
        "pairs of one and of several alike", PAIRS, "np.diff(self.image) | np.diff(self.copies)", "np.diff(self.image)"
    ),
    Mutant("pairs of two images alike", PAIRS, "np.diff(self.image) | np.diff(self.copies)", "np.diff(self.copies)"),
    Mutant("deep supervision ignored", CRITERION, "if self.deep_supervision else []", "if True else []"),
    Mutant("class cost ignored", MATCHER, "self.cost_class * class_cost + ", ""),
    Mutant("dice cost ignored", MATCHER, " + self.cost_dice * dice", ""),
    Mutant(
        "dearest matching",
        MATCHER,
        "map(linear_sum_assignment, problems)\n    ",
        "map(linear_sum_assignment, [-p for p in problems])\n    ",
    ),
    Mutant(
        "most certain points",
        POINTS,
        "sample_points(maps, candidates).abs_()",
        "-sample_points(maps, candidates).abs_()",
    ),
    Mutant("points on a line", POINTS, "view(*shape, 2)\n", "view(*shape, 2)[..., :1].repeat_interleave(2, -1)\n"),
    Mutant(
        "corners aligned", POINTS, "points.unsqueeze(2), align_corners=False", "points.unsqueeze(2), align_corners=True"
    ),
    Mutant("bits shifted", MASKS, "|= of_bit.to(torch.uint8) << bit", "|= of_bit.to(torch.uint8) << (7 - bit)"),
    # data
    Mutant("colour jitter without hue", AUGMENTATION, "(np.arange(256) + self.hue) % 180", "np.arange(256) % 180"),
    Mutant("colour jitter without saturation", AUGMENTATION, "_ramp(self.saturation, 0.0)", "np.arange(256)"),
    Mutant(
        "colour jitter without contrast", AUGMENTATION, "np.random.uniform(*self.contrast) if chance() else 1.0", "1.0"
    ),
    Mutant("colour jitter crippled", AUGMENTATION, "return np.random.rand() < 0.5", "return np.random.rand() < 0.05"),
    Mutant("colour jitter left out", AUGMENTATION, "if keys.COLOR_AUG_SSD:", "if False:"),
    Mutant("flip at 0.1", AUGMENTATION, "T.RandomFlip(horizontal", "T.RandomFlip(prob=0.1, horizontal"),
    Mutant(
        "scales not jittered", AUGMENTATION, "_ResizeScale(cfg.INPUT.MIN_SCALE,", "_ResizeScale(cfg.INPUT.MAX_SCALE,"
    ),
    Mutant("crop drawn once", AUGMENTATION, "for _ in range(10):", "for _ in range(1):"),
    Mutant("INPUT.FORMAT ignored by mappers", MAPPERS, '"image_format": cfg.INPUT.FORMAT', '"image_format": "RGB"'),
    Mutant(
        "INPUT.FORMAT ignored by the reader", IMAGES, "return array if format ==", "return array if True or format =="
    ),
    Mutant("EXIF ignored", IMAGES, "ImageOps.exif_transpose(image)", "image"),
    Mutant("padding black", MAPPERS, "value=IMAGE_PADDING", "value=0"),
    Mutant(
        "crowds are targets",
        TARGETS,
        'kept = [annotation for annotation in annotations if not annotation.get("iscrowd", 0)]',
        "kept = list(annotations)",
    ),
    Mutant(
        "all positions augmented alike",
        LOADER,
        "words = _seeds(seed, _SAMPLE, position)",
        "words = _seeds(seed, _SAMPLE, 0)",
    ),
    Mutant("every process reads all", LOADER, "(self.rank - first) % self.world_size", "(0 - first) % self.world_size"),
    Mutant("never shuffled", LOADER, "            if self.shuffle:", "            if False:"),
    Mutant(
        "resumed run starts over",
        LOADER,
        "islice(self._batches(), self.start, None)",
        "islice(self._batches(), 0, None)",
    ),
    Mutant("wide images among others", LOADER, "groups[self.is_wide[pair[1]]]", "groups[0]"),
    Mutant("grouping cannot be turned off", LOADER, "cfg.DATALOADER.ASPECT_RATIO_GROUPING and all", "all"),
    Mutant("grouping by height", LOADER, 'record["width"] > record["height"]', 'record["width"] < 0'),
    Mutant("segments cropped away are dropped", TARGETS, "classes, keep_empty=True)", "classes)"),
    Mutant("label maps resized to centres", TARGETS, ", rounds_down=True)", ")"),
    Mutant("padding belongs to instances", TARGETS, " & ~padding", ""),
    Mutant(
        "crowd segments are targets",
        TARGETS,
        'kept = [segment for segment in segments_info if not segment.get("iscrowd", 0)]',
        "kept = list(segments_info)",
    ),
    Mutant("polygons not moved", TARGETS, "[move(np.asarray", "[(np.asarray"),
    Mutant("one category may fill a crop", AUGMENTATION, "areas.sum() * self.max_area", "areas.sum() * 2"),
    Mutant("void counts as area of a crop", AUGMENTATION, "window[window >= 0]", "window.clip(min=0).ravel()"),
    Mutant("categories not needed", MAPPERS, "isinstance(item, CategoryAreaCrop)", "False"),
    Mutant("padding is no padding", EXAMPLE, "value=True)", "value=False)", ("data/test_mappers.py",)),
    Mutant(
        "label maps of class 0",
        EXAMPLE,
        "instances.image_size, ignore_label)",
        "instances.image_size, 0)",
        ("data/test_mappers.py",),
    ),
    Mutant("boxes a pixel small", MASKS, "inside.shape[1] - inside[:, ::-1]", "inside.shape[1] - 1 - inside[:, ::-1]"),
    Mutant("things under stuff of ADE20K", ADE20K, "labels + 1, 0), instances)", "labels + 1, 0), instances)[::-1]"),
    Mutant("limit of unreadable images", LOADER, "len(indices) > self.limit", "len(indices) > 2 * self.limit"),
    Mutant(
        "empty images are kept", LOADER, "kept = [record for record in dicts if _has_objects(record)]", "kept = dicts"
    ),
    Mutant("test images not resized", AUGMENTATION, "cfg.INPUT.MIN_SIZE_TEST,", "0,"),
    Mutant(
        "largest size ignored", AUGMENTATION, "keys.MIN_SIZE_TRAIN, keys.MAX_SIZE_TRAIN,", "keys.MIN_SIZE_TRAIN, 9999,"
    ),
    Mutant("ignored pixels are of a class", TARGETS, "index = np.where(ignored, -1, labels)", "index = labels % 150"),
    Mutant(
        "category ids of files",
        COCO,
        '"category_id": contiguous_ids[annotation["category_id"]]',
        '"category_id": annotation["category_id"]',
    ),
    Mutant("things are stuff", COCO, "isthing = category in things", "isthing = False"),
]
