"""Names of the weights in transformers' Mask2Former, and ours, both ways.

Theirs are those of the files that `save_pretrained` writes, as on the `facebook/mask2former-*` pages; names of a model
in memory (`model.state_dict()`), which newer versions spell otherwise, are understood too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor


class Rule(NamedTuple):
    """Their prefix of a name, and ours; `{i}` is a number and `{i+1}` the same number and one."""

    theirs: str
    ours: str
    part: int | None = None
    """Which third of our rows is their tensor: queries, keys, values."""


_ENCODER = "model.pixel_level_module.encoder."
_DECODER = "model.pixel_level_module.decoder."
_QUERIES = "model.transformer_module."

# Of two rules that fit, the first counts.
_HEAD_PAIRS = (
    ("class_predictor.", "sem_seg_head.predictor.class_embed."),
    ("criterion.empty_weight", "criterion.empty_weight"),
    (_DECODER + "level_embed", "sem_seg_head.pixel_decoder.transformer.level_embed"),
    (_DECODER + "input_projections.", "sem_seg_head.pixel_decoder.input_proj."),
    (_DECODER + "mask_projection.", "sem_seg_head.pixel_decoder.mask_features."),
    (_DECODER + "adapter_{i}.1.", "sem_seg_head.pixel_decoder.adapter_{i}.norm."),
    (_DECODER + "adapter_{i}.0.", "sem_seg_head.pixel_decoder.adapter_{i}."),
    (_DECODER + "layer_{i}.1.", "sem_seg_head.pixel_decoder.layer_{i}.norm."),
    (_DECODER + "layer_{i}.0.", "sem_seg_head.pixel_decoder.layer_{i}."),
    (_QUERIES + "queries_embedder.", "sem_seg_head.predictor.query_embed."),
    (_QUERIES + "queries_features.", "sem_seg_head.predictor.query_feat."),
    (_QUERIES + "level_embed.", "sem_seg_head.predictor.level_embed."),
    (_QUERIES + "input_projections.", "sem_seg_head.predictor.input_proj."),
    (_QUERIES + "decoder.layernorm.", "sem_seg_head.predictor.decoder_norm."),
    (_QUERIES + "decoder.mask_predictor.mask_embedder.{i}.0.", "sem_seg_head.predictor.mask_embed.layers.{i}."),
)
_ENCODER_LAYER_PAIRS = (
    ("self_attn_layer_norm.", "norm1."),
    ("self_attn.", "self_attn."),
    ("fc1.", "linear1."),
    ("fc2.", "linear2."),
    ("final_layer_norm.", "norm2."),
)
_DECODER_LAYER_PAIRS = (
    ("self_attn.out_proj.", "self_attention_layers.{i}.self_attn.out_proj."),
    ("self_attn_layer_norm.", "self_attention_layers.{i}.norm."),
    ("cross_attn_layer_norm.", "cross_attention_layers.{i}.norm."),
    ("cross_attn.", "cross_attention_layers.{i}.multihead_attn."),
    ("fc1.", "ffn_layers.{i}.linear1."),
    ("fc2.", "ffn_layers.{i}.linear2."),
    ("final_layer_norm.", "ffn_layers.{i}.norm."),
)
_SWIN_PAIRS = (
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("embeddings.norm.", "patch_embed.norm."),
    ("hidden_states_norms.stage{i+1}.", "norm{i}."),
    ("encoder.layers.{i}.downsample.", "layers.{i}.downsample."),
)
_SWIN_BLOCK_PAIRS = (
    ("layernorm_before.", "norm1."),
    ("layernorm_after.", "norm2."),
    ("attention.output.dense.", "attn.proj."),
    ("attention.self.relative_position", "attn.relative_position"),
    ("intermediate.dense.", "mlp.fc1."),
    ("output.dense.", "mlp.fc2."),
)
_RESNET_PAIRS = (
    ("embedder.embedder.convolution.", "stem.conv1."),
    ("embedder.embedder.normalization.", "stem.conv1.norm."),
    ("encoder.stages.{i}.layers.{j}.shortcut.convolution.", "res{i+2}.{j}.shortcut."),
    ("encoder.stages.{i}.layers.{j}.shortcut.normalization.", "res{i+2}.{j}.shortcut.norm."),
    ("encoder.stages.{i}.layers.{j}.layer.{k}.convolution.", "res{i+2}.{j}.conv{k+1}."),
    ("encoder.stages.{i}.layers.{j}.layer.{k}.normalization.", "res{i+2}.{j}.conv{k+1}.norm."),
)


def _rules() -> tuple[Rule, ...]:
    rules = [Rule(*pair) for pair in _HEAD_PAIRS]
    theirs, ours = _DECODER + "encoder.layers.{i}.", "sem_seg_head.pixel_decoder.transformer.encoder.layers.{i}."
    rules += [Rule(theirs + a, ours + b) for a, b in _ENCODER_LAYER_PAIRS]
    theirs, ours = _QUERIES + "decoder.layers.{i}.", "sem_seg_head.predictor.transformer_"
    rules += [
        Rule(f"{theirs}self_attn.{name}_proj.", ours + "self_attention_layers.{i}.self_attn.in_proj_", part)
        for part, name in enumerate("qkv")
    ]
    rules += [Rule(theirs + a, ours + b) for a, b in _DECODER_LAYER_PAIRS]
    theirs, ours = _ENCODER + "encoder.layers.{i}.blocks.{j}.", "backbone.layers.{i}.blocks.{j}."
    rules += [
        Rule(f"{theirs}attention.self.{name}.", ours + "attn.qkv.", part)
        for part, name in enumerate(("query", "key", "value"))
    ]
    rules += [Rule(theirs + a, ours + b) for a, b in _SWIN_BLOCK_PAIRS]
    rules += [Rule(_ENCODER + a, "backbone." + b) for a, b in _SWIN_PAIRS]
    # Reversed: ours are prefixes of one another here, and theirs are not.
    rules += [Rule(_ENCODER + a, "backbone." + b) for a, b in reversed(_RESNET_PAIRS)]
    return tuple(rules)


_RULES = _rules()
_TO_OURS = [(rule, rule.theirs, rule.ours) for rule in _RULES]
_TO_THEIRS = [(rule, rule.ours, rule.theirs) for rule in _RULES]

# Spellings of a Swin in memory, in versions that save it under the names above.
_IN_MEMORY = (
    (re.compile(rf"^{re.escape(_ENCODER)}swin\.(?!layernorm)"), _ENCODER),
    (re.compile(r"(\.blocks\.\d+\.)attention\.q_proj\."), r"\1attention.self.query."),
    (re.compile(r"(\.blocks\.\d+\.)attention\.k_proj\."), r"\1attention.self.key."),
    (re.compile(r"(\.blocks\.\d+\.)attention\.v_proj\."), r"\1attention.self.value."),
    (re.compile(r"(\.blocks\.\d+\.)attention\.o_proj\."), r"\1attention.output.dense."),
    (re.compile(r"(\.blocks\.\d+\.)attention\.relative_position_bias\."), r"\1attention.self."),
    (re.compile(r"(\.blocks\.\d+\.)mlp\.fc1\."), r"\1intermediate.dense."),
    (re.compile(r"(\.blocks\.\d+\.)mlp\.fc2\."), r"\1output.dense."),
)
# A norm behind the last stage of Swin, which the model does not use: each stage's output has its own.
_UNUSED = re.compile(rf"^{re.escape(_ENCODER)}(swin\.)?layernorm\.")


def is_transformers(names: Iterable[str]) -> bool:
    """Tell whether names are those of transformers' Mask2Former."""
    return any(name.startswith((_ENCODER, _DECODER)) for name in names)


def from_transformers(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Bring weights of transformers' model to the names of ours.

    Three tensors of queries, keys and values become one. Names that fit no rule stay; a norm that their model holds
    but does not use is left out.

    Returns:
        The weights, and the names that changed: theirs → ours.
    """
    converted: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    renamed: dict[str, str] = {}
    for name, value in weights.items():
        if _UNUSED.match(name):
            continue
        on_disk = name
        for pattern, replacement in _IN_MEMORY:
            on_disk = pattern.sub(replacement, on_disk)
        rule, ours = _translate(on_disk, _TO_OURS)
        renamed[name] = ours
        if rule is not None and rule.part is not None:
            parts.setdefault(ours, {})[rule.part] = value
        else:
            converted[ours] = value
    for ours, thirds in parts.items():
        if len(thirds) == 3:  # otherwise the file is incomplete, and the load report says so
            converted[ours] = torch.cat([thirds[part] for part in range(3)])
    return converted, {old: new for old, new in renamed.items() if old != new and new in converted}


def to_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring the weights of our model, with a Swin or a ResNet, to the names that transformers reads.

    Raises:
        ValueError: if their model has no place for one of them.
    """
    converted: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.endswith("relative_position_index"):
            continue  # follows from the window size
        rule, theirs = _translate(name, _TO_THEIRS)
        if rule is None:
            raise ValueError(f"transformers' Mask2Former has no place for {name}")
        if rule.part is None:
            converted[theirs] = value
            if theirs.endswith(".normalization.running_var"):  # frozen norms do not count batches, theirs do
                counter = theirs.replace("running_var", "num_batches_tracked")
                converted.setdefault(counter, torch.tensor(0))
            continue
        siblings = [other for other in _RULES if other.ours == rule.ours]
        for other, third in zip(siblings, value.chunk(3), strict=True):
            converted[_translate(name, [(other, other.ours, other.theirs)])[1]] = third.clone()
    return converted


def _translate(name: str, pairs: Iterable[tuple[Rule, str, str]]) -> tuple[Rule | None, str]:
    """Apply the first (rule, from, to) that fits; return the rule and the new name, or None and the old one."""
    for rule, source, target in pairs:
        match = _pattern(source).match(name)
        if match:
            values = {letter: int(match[letter]) - int(offset or 0) for letter, offset in _FIELD.findall(source)}
            return rule, _fill(target, values) + name[match.end() :]
    return None, name


_FIELD = re.compile(r"\{(\w)(?:\+(\d))?\}")


@cache
def _pattern(template: str) -> re.Pattern[str]:
    texts = _FIELD.split(template)  # text, letter, offset, text, ...
    pattern = re.escape(texts[0])
    for letter, text in zip(texts[1::3], texts[3::3], strict=True):
        pattern += rf"(?P<{letter}>\d+)" + re.escape(text)
    return re.compile(pattern)


def _fill(template: str, values: Mapping[str, int]) -> str:
    return _FIELD.sub(lambda match: str(values[match[1]] + int(match[2] or 0)), template)
