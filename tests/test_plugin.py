"""A project outside this one registers its own backbone, pixel decoder and meta-architecture, and trains a step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mask2former.d2.config import CfgNode
from mask2former.d2.layers import ShapeSpec
from mask2former.d2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    Backbone,
    build_model,
)
from mask2former.modeling import MaskFormer
from tests.helpers.models import example, small_cfg, total


@BACKBONE_REGISTRY.register()
class ExternalBackbone(Backbone):
    """Strided convolutions, one per feature."""

    def __init__(self, cfg: CfgNode, input_shape: ShapeSpec) -> None:
        super().__init__()
        self._out_features = ["res2", "res3", "res4", "res5"]
        self._out_feature_channels = dict.fromkeys(self._out_features, 16)
        self._out_feature_strides = {name: 2 ** (i + 2) for i, name in enumerate(self._out_features)}
        self.stem = nn.Conv2d(input_shape.channels or 3, 16, 3, stride=2, padding=1)
        self.stages = nn.ModuleList(nn.Conv2d(16, 16, 3, stride=2, padding=1) for _ in self._out_features)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x).relu()
        features = {}
        for name, stage in zip(self._out_features, self.stages, strict=True):
            features[name] = x = stage(x).relu()
        return features


@SEM_SEG_HEADS_REGISTRY.register()
class ExternalPixelDecoder(nn.Module):
    """One convolution per map; returns a plain tuple, as decoders written for the published code do."""

    def __init__(self, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> None:
        super().__init__()
        head = cfg.MODEL.SEM_SEG_HEAD
        self.project = nn.ModuleDict(
            {name: nn.Conv2d(spec.channels or 0, head.CONVS_DIM, 1) for name, spec in input_shape.items()}
        )
        self.mask_features = nn.Conv2d(head.CONVS_DIM, head.MASK_DIM, 1)

    def forward_features(self, features: dict[str, Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        maps = [self.project[name](features[name]) for name in ("res5", "res4", "res3", "res2")]
        return self.mask_features(maps[-1]), maps[0], maps[:3]


@META_ARCH_REGISTRY.register()
class ExternalArchitecture(MaskFormer):
    """Counts its steps."""

    steps = 0

    def forward(self, batched_inputs):  # type: ignore[no-untyped-def]
        self.steps += 1
        return super().forward(batched_inputs)


def test_registered_components_are_built_and_trained() -> None:
    cfg = small_cfg(
        MODEL__META_ARCHITECTURE="ExternalArchitecture",
        MODEL__BACKBONE__NAME="ExternalBackbone",
        MODEL__SEM_SEG_HEAD__PIXEL_DECODER_NAME="ExternalPixelDecoder",
    )
    torch.manual_seed(0)
    model = build_model(cfg)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = total(model([example(seed=0), example(seed=1)]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert type(model).__name__ == "ExternalArchitecture"
    assert model.steps == 3
    assert losses[-1] < losses[0]
