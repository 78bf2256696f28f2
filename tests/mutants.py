"""Changes that tests must notice: what a training or a data set silently suffers from. `tests/mutate.py` makes them."""

from tests.mutate import Mutant

TRAINER, OPTIMIZER, SCHEDULES = "engine/trainer.py", "engine/optimizer.py", "engine/schedules.py"
MODEL, CRITERION, MATCHER = "modeling/mask_former.py", "modeling/criterion.py", "modeling/matcher.py"
MASKED = "modeling/transformer_decoder/multi_scale_masked.py"
ENCODER = "modeling/pixel_decoder/deformable_encoder.py"
AUGMENTATION, MAPPERS, LOADER, TARGETS = "data/augmentation.py", "data/mappers.py", "data/loader.py", "data/targets.py"
EXAMPLE, ADE20K, COCO = "data/example.py", "data/prepare/ade20k.py", "data/datasets/coco.py"
IMAGES, MASKS, POINTS = "data/images.py", "modeling/masks.py", "modeling/points.py"
PAIRS, LAYERS, RESNET = "modeling/pairs.py", "modeling/transformer.py", "modeling/backbone/resnet.py"
PARTS, SAMPLING, MIXTURE = "engine/accumulation.py", "data/sampling.py", "data/layouts/mixture.py"
RUNS, OBJECTS, VIDEO = "modeling/run_lengths.py", "tiling/objects.py", "predict/video.py"
PREDICTOR, TILED = "predict/predictor.py", ("predict/test_tiled_predictor.py",)
TILES = ("tiling/test_tiles.py",)
IN_TILES = ("tiling/test_segmenter.py",)
CPU, DERIVE = "ops/cpu.py", "engine/derive.py"
INITIAL = ("modeling/test_initialisation.py",)
SEMANTIC, PANOPTIC, INSTANCE = (f"evaluation/{name}.py" for name in ("semantic", "panoptic", "instance"))
PRECISION, BOUNDARY, RLE = "evaluation/average_precision.py", "evaluation/boundary.py", "data/rle.py"
SCORES = ("evaluation/test_instance.py", "evaluation/test_boundary.py")
LABELS, OWN = "data/labels.py", ("data/layouts/test_description.py", "data/layouts/test_masks.py")
FINITE, WRITERS = "engine/finite.py", "engine/writers.py"
DISTRIBUTED, RESUME, HOOKS = ("engine/test_distributed.py",), ("engine/test_resume.py",), ("engine/test_hooks.py",)
STEP = ("engine/test_precision.py", "engine/test_seed.py", "engine/test_trainer.py")

MUTANTS = [
    # engine
    Mutant("clipping left out", OPTIMIZER, 'if kind == "full_model":', 'if kind == "none":'),
    Mutant("steps of other loops do not clip", OPTIMIZER, "if not self._is_clipped:", "if False:"),
    Mutant("clipping at 0", OPTIMIZER, "clip.ENABLED and clip.CLIP_VALUE > 0", "clip.ENABLED"),
    Mutant("autocast left out", PARTS, "with precision.autocast():", "if True:", STEP),
    Mutant("unscale left out", TRAINER, "self.scaler.unscale_(self.optimizer)", "pass", STEP),
    Mutant(
        "seed equal on all ranks",
        TRAINER,
        "self.cfg.SEED, self.iter, comm.get_rank()",
        "self.cfg.SEED, self.iter",
        STEP,
    ),
    Mutant("seed equal in all steps", TRAINER, "self.cfg.SEED, self.iter, comm", "self.cfg.SEED, 0, comm", STEP),
    Mutant(
        "a stop in the last step is an error",
        TRAINER,
        "stop is not None and iteration + 1 < self.max_iter",
        "stop is not None",
    ),
    Mutant("what is saved is saved again", TRAINER, "if self._last_saved != self._last_update:", "if True:"),
    Mutant(
        "statistics of a resumed run are unknown",
        TRAINER,
        "        self._statistics.keep()\n        check_same_start(",
        "        check_same_start(",
    ),
    Mutant(
        "steps that are looked at stay clipped",
        OPTIMIZER,
        "        self._is_clipped = False\n        return super().step()",
        "        return super().step()",
    ),
    Mutant(
        "scalars of one process",
        FINITE,
        "[value / comm.get_world_size() for value in sums[: len(names)]]",
        "values",
        DISTRIBUTED,
    ),
    Mutant("steps left out are taken", TRAINER, "if self.guard.skips:", "if False:"),
    Mutant(
        "statistics of a step left out stay",
        TRAINER,
        "                self._statistics.restore()\n            else:",
        "                pass\n            else:",
    ),
    Mutant("steps are left out for ever", FINITE, "if self._skipped < self._limit:", "if self._limit:"),
    Mutant("good steps do not end a row", FINITE, "self._overflows = self._skipped = 0", "self._overflows = 0"),
    Mutant("events wait for their disk", WRITERS, "        self._writer.flush()\n", ""),
    Mutant("events of a lost run stay", WRITERS, "os.truncate(file, state", "str(state", RESUME),
    Mutant("the last line is not mended", WRITERS, '        if state["last"]:', "        if False:"),
    Mutant(
        "medians forget the run before", WRITERS, "for name, scalar in state.items():", "for name, scalar in []:", HOOKS
    ),
    Mutant("an interruption writes metrics", TRAINER, "if name != INTERRUPTED:", "if True:"),
    Mutant(
        "evaluations leave no record", TRAINER, "self._evaluations.write(iteration, self._stateful())", "pass", RESUME
    ),
    Mutant("kernels are chosen anew", "engine/kernels.py", "cpu.convolution_is_faster = state", "_ = state"),
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
    Mutant(
        "gradients of parts add up to too much",
        PARTS,
        "scale(total_loss / parts)",
        "scale(total_loss)",
        ("engine/test_accumulation.py",),
    ),
    Mutant(
        "each part counts its own masks",
        CRITERION,
        'labels = [t["labels"] for t in targets] if batch is None else',
        'labels = [t["labels"] for t in targets] if True else',
        ("engine/test_accumulation.py",),
    ),
    Mutant(
        "each part has its own mean of classes",
        CRITERION,
        "weight * of_every / of_seen",
        "weight * batch.parts",
        ("engine/test_accumulation.py",),
    ),
    Mutant(
        "gradients are never averaged over processes",
        "engine/accumulation.py",
        "nullcontext() if is_last or not isinstance",
        "nullcontext() if not isinstance",
    ),
    Mutant("average of weights moves too fast", "engine/ema.py", "live, 1 - self._decay", "live, self._decay"),
    Mutant(
        "average of weights leaves statistics out", "engine/ema.py", "value.is_floating_point()]", "value.ndim > 1]"
    ),
    Mutant(
        "average of weights not resumed",
        TRAINER,
        "self.ema.resume(state)",
        "self.ema.restart()",
        ("engine/test_ema.py",),
    ),
    Mutant("layers one step off", "engine/parameter_rules.py", "(len(layers) - index)", "(len(layers) - index - 1)"),
    Mutant(
        "first pattern counts",
        "engine/parameter_rules.py",
        "numbers |= dict.fromkeys(matching(pattern, names, key=key), float(number))",
        "numbers = dict.fromkeys(matching(pattern, names, key=key), float(number)) | numbers",
    ),
    Mutant("frozen statistics change", "engine/freeze.py", "            module.eval()", "            pass"),
    Mutant("equal metrics count as better", "engine/metric_hooks.py", "value > self.best if", "value >= self.best if"),
    Mutant("one evaluation counts twice", "engine/metric_hooks.py", "if iteration <= self._seen:", "if False:"),
    Mutant(
        "state of hooks not resumed",
        TRAINER,
        "load_hook_states(self._stateful(), self._hook_states)",
        "pass",
        ("engine/test_metric_hooks.py",),
    ),
    Mutant(
        "lost evaluation not made up",
        "engine/hooks.py",
        "self._evaluated != start - 1",
        "False",
        ("engine/test_metric_hooks.py", "engine/test_bad_ends.py"),
    ),
    Mutant("one cycle rises too long", SCHEDULES, "rise * max_iter - 1, max_iter - 1", "rise * max_iter, max_iter - 1"),
    Mutant(
        "files of other runs are deleted",
        "checkpoint/checkpointer.py",
        "self._numbered = list(content.pop(_WRITTEN, []))",
        "self._numbered = sorted(p.name for p in self.folder.glob('model_0*.pth'))",
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
    Mutant(
        "test precision ignored",
        MODEL,
        "torch.autocast(self.device.type, dtype=self.test_dtype)",
        "nullcontext()",
        ("modeling/test_speed_settings.py",),
    ),
    Mutant("things not kept apart", MODEL, "return set(ids.values())", "return set()"),
    Mutant(
        "sampling offsets in bf16",
        ENCODER,
        "with torch.autocast(device_type=device, enabled=False):",
        "if True:",
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
    Mutant(
        "encoder FFN default initialisation", LAYERS, "nn.init.xavier_uniform_(self.linear1.weight)", "pass", INITIAL
    ),
    Mutant(
        "encoder values default initialisation", ENCODER, "nn.init.xavier_uniform_(projection.weight)", "pass", INITIAL
    ),
    Mutant(
        "pixel corners for centres",
        ENCODER,
        "y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5)",
        "y = (torch.arange(height, device=device, dtype=torch.float32) + 0.0)",
    ),
    Mutant("encoder without positions", ENCODER, "self.self_attn(y + position,", "self.self_attn(y,"),
    Mutant("attention outside the mask", MASKED, "mask_logits.flatten(2) >= 0", "mask_logits.flatten(2) <= 0"),
    Mutant("empty masks see nothing", MASKED, "(inside | ~inside.any(dim=2, keepdim=True))", "inside"),
    Mutant("every layer reads the first level", MASKED, "level = i % self.num_levels", "level = 0"),
    Mutant("levels without embedding", MASKED, " + self.level_embed.weight[level]", ""),
    Mutant(
        "values carry positions",
        MASKED,
        "feature.device), value",
        "feature.device), value + sine_tokens(height, width, channels, feature.device)",
    ),
    Mutant("one layer too many", MASKED, "node.DEC_LAYERS - 1", "node.DEC_LAYERS"),
    Mutant("feed-forward without dropout", LAYERS, "self.linear2(self.dropout(hidden))", "self.linear2(hidden)"),
    Mutant("folded norms without eps", RESNET, "(norm.running_var + norm.eps)", "norm.running_var"),
    Mutant("hooks of folded norms", RESNET, "if not fixed or observed or", "if not fixed or"),
    Mutant("own kernels in graphs", CPU, "        and not is_traced()\n", ""),
    # loss
    Mutant(
        "count of masks over ranks x1000",
        CRITERION,
        "total.clamp(min=1) / (processes * parts)",
        "1000 * total.clamp(min=1) / (processes * parts)",
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
    Mutant("masks of all ranks together", CRITERION, "/ (processes * parts)", "/ parts"),
    Mutant(
        "masks of a part of the batch",
        CRITERION,
        "max(float(count), 1.0) / parts",
        "max(float(count), 1.0)",
        ("engine/test_accumulation.py",),
    ),
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
    Mutant("factors without the root", "data/sampling.py", "math.sqrt(ratio) if sqrt else ratio", "ratio"),
    Mutant("rounded shares are lost", "data/sampling.py", "(epoch, epoch + 1)]", "(0, 1)]"),
    Mutant("segments left out are not void", LABELS, 'if record.get("void_segments"):', "if False:", OWN),
    Mutant("drawn splits overlap", "data/layouts/splits.py", "portion=(0.0, border)", "portion=(0.0, 1.0)"),
    Mutant("unknown labels pass", LABELS, "    if len(unknown):", "    if False:", OWN),
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
    Mutant(
        "every process reads all", SAMPLING, "(self.rank - first) % self.world_size", "(0 - first) % self.world_size"
    ),
    Mutant("never shuffled", SAMPLING, "if not self.shuffle:", "if True:", ("data/test_loader.py",)),
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
    Mutant("boxes a pixel small", MASKS, "last = size - occupied", "last = size - 1 - occupied"),
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
    # evaluation
    Mutant(
        "the last of equal classes", SEMANTIC, "np.greater(planes[index], best", "np.greater_equal(planes[index], best"
    ),
    Mutant("ignored pixels are counted", SEMANTIC, "valid = truth != ignore_label", "valid = truth < num_classes"),
    Mutant("confusion transposed", SEMANTIC, "truth * num_classes + predicted", "predicted * num_classes + truth"),
    Mutant("IoU of recall", SEMANTIC, "(in_truth + in_prediction - hits)[occurs]", "in_truth[occurs]"),
    Mutant("classes without truth count", SEMANTIC, "occurs = in_truth > 0", "occurs = in_truth + in_prediction > 0"),
    Mutant(
        "frequencies of predictions",
        SEMANTIC,
        "(iou[occurs] * in_truth[occurs])",
        "(iou[occurs] * in_prediction[occurs])",
    ),
    Mutant("half is a match", PANOPTIC, "        if iou > 0.5:\n", "        if iou >= 0.5:\n"),
    Mutant("half on void is forgiven", PANOPTIC, "pred_areas[pred_id] <= 0.5", "pred_areas[pred_id] < 0.5"),
    Mutant("void counts in unions", PANOPTIC, " - joint.get((VOID, pred_id), 0)\n", "\n"),
    Mutant("crowds are matched", PANOPTIC, 'truth is None or truth.get("iscrowd", 0) or', "truth is None or"),
    Mutant(
        "crowds of any class forgive", PANOPTIC, "if category in crowd_of_class:", "for category in crowd_of_class:"
    ),
    Mutant("SQ by recognition", PANOPTIC, "np.divide(iou, tp,", "np.divide(iou, count,"),
    Mutant("things among stuff", PANOPTIC, '"_st": classes[~is_thing]', '"_st": classes'),
    Mutant("void at boundaries", PANOPTIC, ", ignored=gt_ids == VOID", "", ("evaluation/test_boundary.py",)),
    Mutant(
        "mask IoU for boundary PQ",
        PANOPTIC,
        "iou = min(iou, boundary_iou(",
        "iou = max(iou, boundary_iou(",
        ("evaluation/test_boundary.py",),
    ),
    Mutant(
        "small for medium",
        INSTANCE,
        '"APm": mean_precision(table[:, :, :, 2])',
        '"APm": mean_precision(table[:, :, :, 1])',
    ),
    Mutant("AP75 at 80", INSTANCE, "table[at[75]", "table[at[80]"),
    Mutant(
        "images in the order of ranks",
        INSTANCE,
        "pair in part[0][task]), key=_by_id)",
        "pair in part[0][task]), key=lambda pair: 0)",
        SCORES,
    ),
    Mutant("other sizes of masks", INSTANCE, 'truth[0].rle["size"] != rles[0]["size"]', "False"),
    Mutant("all detections count", PRECISION, "[:MAX_DETECTIONS]", "", SCORES),
    Mutant("crowds can be missed", PRECISION, "if not obj.iscrowd:", "if True:", SCORES),
    Mutant("objects found twice", PRECISION, "free[a, t, g] = False", "pass", SCORES),
    Mutant(
        "ignored before proper", PRECISION, "proper = candidates & ~ignored", "proper = candidates & ignored", SCORES
    ),
    Mutant(
        "the earlier of equal objects",
        PRECISION,
        "best = last - np.where(eligible, iou, -1.0)[..., ::-1].argmax(axis=-1)",
        "best = np.where(eligible, iou, -1.0).argmax(axis=-1)",
        SCORES,
    ),
    Mutant(
        "ranges by the box of crowds",
        PRECISION,
        "np.where(outside, IGNORED, MISS)",
        "np.where(outside, MISS, MISS)",
        SCORES,
    ),
    Mutant(
        "precision without envelope", PRECISION, "np.maximum.accumulate(precision[::-1])[::-1]", "precision", SCORES
    ),
    Mutant(
        "thresholds open",
        PRECISION,
        "candidates = (free | crowd) & (iou >= thresholds)",
        "candidates = (free | crowd) & (iou > thresholds)",
        SCORES,
    ),
    Mutant("mask IoU for boundary AP", PRECISION, "ious = np.minimum(ious,", "ious = np.maximum(ious,", SCORES),
    Mutant("boundary a pixel wide", BOUNDARY, "side = 2 * width + 1", "side = 2 * width - 1"),
    Mutant("edge of the image inside", BOUNDARY, "cv2.BORDER_CONSTANT, value=0", "cv2.BORDER_CONSTANT, value=1"),
    Mutant("boundary of the longer side", BOUNDARY, "math.hypot(height, width)", "max(height, width)"),
    Mutant("ignored in one boundary", BOUNDARY, "first & ~ignored, second & ~ignored", "first & ~ignored, second"),
    Mutant("run lengths by rows", RLE, "columns.T[:, :, None]", "columns[:, :, None]"),
    Mutant("run lengths of values", RLE, "mask.astype(bool, copy=False).view(np.uint8)", "mask.astype(np.uint8)"),
    Mutant(
        "run lengths of another side",
        RLE,
        'int(side) for side in rle["size"]',
        'int(side) for side in rle["size"][::-1]',
        ("evaluation/test_instance.py", "data/test_rle.py"),
    ),
    # own data
    Mutant("class rows by number", "checkpoint/class_rows.py", "stored[self.kept[name]]", "stored[row]"),
    Mutant("no-object row anew", "checkpoint/class_rows.py", "filled[-1] = stored[-1]", "pass"),
    Mutant("names told apart by case", "checkpoint/class_rows.py", "name.lower()", "name"),
    Mutant("rate of another batch", DERIVE, "rate * cfg.SOLVER.IMS_PER_BATCH / batch", "rate"),
    Mutant("as many queries as objects", DERIVE, "MARGIN * most", "most"),
    Mutant("tiles have the queries of images", DERIVE, "if cfg.TEST.TILE_SIZE:", "if False:"),
    Mutant("tiles are not asked for", DERIVE, "if not conditions.pretrained and crop < side:", "if False:"),
    Mutant("evaluation sees whole images", "engine/builders.py", "in_tiles(cfg, model)", "model", IN_TILES),
    Mutant("tiles keep their own size", "tiling/segmenter.py", "round(place * to / source)", "place", IN_TILES),
    Mutant(
        "tiles are as large as images",
        "tiling/segmenter.py",
        "self.tiles.of(*given)",
        "Tiles(10**6).of(*given)",
        IN_TILES,
    ),
    Mutant("given keys replaced", DERIVE, "if setting.key not in given:", "if True:"),
    Mutant("seed 0 is drawn", LOADER, "cfg.SEED >= 0", "cfg.SEED > 0"),
    Mutant("part without weight", CRITERION, "of_seen > 0", "of_seen >= 0", ("engine/test_accumulation.py",)),
    Mutant(
        "segments are not drawn",
        "evaluation/pictures.py",
        '"panoptic_seg" in output',
        '"panoptic_seg" not in output',
        ("evaluation/test_pictures.py",),
    ),
    Mutant(
        "thresholds of the weights for their average",
        "checkpoint/load.py",
        "THRESHOLDS_OF_AVERAGE if averaged else THRESHOLDS",
        "THRESHOLDS",
        ("engine/test_final_report.py",),
    ),
    Mutant("old files replaced", "files.py", "if not name.exists()", "if True", ("engine/test_writers.py",)),
    Mutant(
        "data sets without common classes",
        MIXTURE,
        "for part in self.common:\n            for split, registered",
        "for part in self.parts:\n            for split, registered",
    ),
    Mutant("ratio of a path ignored", MIXTURE, "return path, float(number)", "return path, None"),
    Mutant("steps of the published length", DERIVE, "round(share * length)", "round(share * 368750)"),
    Mutant("all free memory taken", "engine/probe.py", '"cpu": 0.75', '"cpu": 1.0'),
    Mutant("crowds are objects", "data/summary.py", 'if not entry.get("iscrowd", 0)', "if True"),
    # predict
    Mutant("runs end with their column", RUNS, "return ends[single]", "return np.unique(ends)"),
    Mutant("runs of a part go on below it", RUNS, "self._note(self._last[:, None], self._done)", "pass"),
    Mutant("every band begins anew", RUNS, "self._last = inside[:, -1].clone()", "self._last = self._last"),
    Mutant(
        "sums in place of means", "tiling/mean.py", "torch.div(done, seen.to(done.device), out=done)", "pass", TILES
    ),
    Mutant("rows of tiles forget each other", "tiling/mean.py", "= rest.clone()", "= 0", TILES),
    Mutant("objects of any class are one", OBJECTS, "comparable & (inside >= SAME", "(inside >= SAME", TILES),
    Mutant("an object is joined with many", OBJECTS, "if a not in taken_a and b not in taken_b:", "if True:", TILES),
    Mutant("what tiles cut off is kept", OBJECTS, "return cut and 2 * in_core < area", "return False", TILES),
    Mutant("small overlaps join objects", OBJECTS, "SAME_OBJECT = 0.5", "SAME_OBJECT = 0.0", TILES),
    Mutant("the core has no say", OBJECTS, "core | (own == 0)", "own == 0", TILES),
    Mutant("voids stay", OBJECTS, "core | (own == 0)", "core", TILES),
    Mutant("the first score counts", OBJECTS, "max(best[group], scores[number])", "best[group]", TILES),
    Mutant("tiles with labels", PREDICTOR, "COMPACT_OUTPUTS = False", "COMPACT_OUTPUTS = True", TILED),
    Mutant("stride ignored", PREDICTOR, "Tiles(tile, stride)", "Tiles(tile)", TILED),
    Mutant("odd rows cut off", VIDEO, "height % 2, 0, width % 2", "0, 0, 0"),
    Mutant("Ctrl-C loses a video", VIDEO, "interruption = error", "raise"),
    Mutant("blue is red", VIDEO, "cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)", "frame"),
]
