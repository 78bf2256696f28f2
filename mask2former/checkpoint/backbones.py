"""Names of pretrained backbones of other origins, brought to Detectron2's (ResNet) and the original Swin's."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from tabulate import tabulate
from torch import Tensor

from mask2former.checkpoint.errors import CheckpointError

Rename = Callable[[str], str]

# torchvision's ResNet to Detectron2's; three convolutions in the stem are those of R-103.
_TORCHVISION = (
    (r"^conv(\d)\.", r"stem.conv\1."),
    (r"^bn(\d)\.", r"stem.conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
)
# Blobs of Caffe2, as in MSRA's models of Detectron.
_CAFFE2 = (
    (r"^res_conv1_bn_", "stem.conv1_bn_"),
    (r"^conv1_", "stem.conv1_"),
    (r"^res(\d)_(\d+)_", r"res\1.\2."),
    (r"branch1(?=_)", "shortcut"),
    (r"branch2a(?=_)", "conv1"),
    (r"branch2b(?=_)", "conv2"),
    (r"branch2c(?=_)", "conv3"),
    (r"_bn_(s|gamma)$", ".norm.weight"),
    (r"_bn_(b|beta)$", ".norm.bias"),
    (r"_bn_(rm|running_mean)$", ".norm.running_mean"),
    (r"_bn_(riv|running_var)$", ".norm.running_var"),
    (r"_w$", ".weight"),
    (r"_b$", ".bias"),
)
# Parts of classifiers that a backbone does not have, and tables that follow from its settings.
_CLASSIFIER = re.compile(
    r"(stem\.)?(fc|fc1000|pred|head|norm)[._].*|.*\.(attn_mask|relative_position_index|num_batches_tracked)"
)


class ConvertedBackbone(NamedTuple):
    """Weights of a backbone under the names of this project's."""

    kind: str
    weights: dict[str, Tensor]
    renamed: dict[str, str]
    """The names that changed: in the file → now."""
    left_out: tuple[str, ...]
    """Parts of the classifier, and tables that follow from the settings."""

    def table(self) -> str:
        """Return a table of what became of the tensors."""
        size = sum(value.numel() for value in self.weights.values())
        left_out = sorted({name.rpartition(".")[0] or name for name in self.left_out})
        rows = [
            ("origin", self.kind),
            ("kept", f"{len(self.weights)} tensors, {size / 1e6:.1f} M numbers"),
            ("of these renamed", len(self.renamed)),
            ("left out", f"{len(self.left_out)} tensors: {', '.join(left_out[:5])}" if left_out else "nothing"),
        ]
        return tabulate(rows, tablefmt="plain")


def backbone_kind(names: Collection[str]) -> str | None:
    """Return where the names of a pretrained backbone are from, a key of `RENAMES`; None if from none of these."""
    if "layer1.0.conv1.weight" in names:
        return "torchvision"
    if "res2_0_branch2a_w" in names:
        return "caffe2"
    if "patch_embed.proj.weight" in names:
        return "timm" if _is_timm(names) else "swin"
    return None


def backbone_renaming(names: Collection[str], kind: str) -> Rename:
    """Return what maps each of the names, which are of that kind, to a name of this project's backbone."""
    return RENAMES[kind](names)


def convert_backbone(weights: Mapping[str, Tensor], kind: str = "auto") -> ConvertedBackbone:
    """Rename the weights of a pretrained classifier, and leave out what a backbone does not have.

    Raises:
        CheckpointError: if the weights are not of that kind.
    """
    found = backbone_kind(weights)
    # A Swin's names alone need not tell timm's from the original.
    if found is None or kind not in ("auto", found, *(("timm", "swin") if found in ("timm", "swin") else ())):
        asked = "any known kind" if kind == "auto" else f"kind {kind!r}"
        raise CheckpointError(
            f"these are no weights of {asked}{f', but of {found!r}' if found else ''}; known are {', '.join(RENAMES)}. "
            f"The names begin with {', '.join(list(weights)[:3])}"
        )
    rename = backbone_renaming(weights, found)
    names = {name: rename(name) for name in weights}
    kept = {old: new for old, new in names.items() if not _CLASSIFIER.fullmatch(new)}
    return ConvertedBackbone(
        kind=found,
        weights={new: weights[old] for old, new in kept.items()},
        renamed={old: new for old, new in kept.items() if old != new},
        left_out=tuple(old for old in names if old not in kept),
    )


def is_backbone_surplus(name: str) -> bool:
    """Tell whether a name is that of a part of a classifier that a backbone does not have."""
    return _CLASSIFIER.fullmatch(name) is not None


def _from_torchvision(names: Collection[str]) -> Rename:
    def rename(name: str) -> str:
        for pattern, replacement in _TORCHVISION:
            name = re.sub(pattern, replacement, name)
        return re.sub(r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}.", name)

    return rename


def _from_caffe2(names: Collection[str]) -> Rename:
    def rename(name: str) -> str:
        for pattern, replacement in _CAFFE2:
            name = re.sub(pattern, replacement, name)
        return name

    return rename


def _from_swin(names: Collection[str]) -> Rename:
    return lambda name: name


def _from_timm(names: Collection[str]) -> Rename:
    """Newer versions have the step between two stages in the later one, and `layers_0` in feature extractors."""
    shift = 1 if _downsamples_first(names) else 0

    def rename(name: str) -> str:
        name = re.sub(r"^layers_(\d)\.", r"layers.\1.", name)
        return re.sub(r"^layers\.(\d)\.downsample\.", lambda match: f"layers.{int(match[1]) - shift}.downsample.", name)

    return rename


def _is_timm(names: Collection[str]) -> bool:
    return _downsamples_first(names) or any(name.startswith(("layers_", "head.fc.")) for name in names)


def _downsamples_first(names: Collection[str]) -> bool:
    stages = [match for match in (re.match(r"layers[._](\d)\.(downsample)?", name) for name in names) if match]
    steps = {int(match[1]) for match in stages if match[2]}
    return bool(steps) and 0 not in steps


RENAMES: dict[str, Callable[[Collection[str]], Rename]] = {
    "torchvision": _from_torchvision,
    "caffe2": _from_caffe2,
    "swin": _from_swin,
    "timm": _from_timm,
}
