"""Recorded names and outputs of the published backbones (`tests/golden/backbones.json`)."""

from __future__ import annotations

import hashlib
import json

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers import golden

PIXEL_MEAN = torch.tensor([123.675, 116.28, 103.53])[:, None, None]
PIXEL_STD = torch.tensor([58.395, 57.12, 57.375])[:, None, None]


def assert_published(backbone: nn.Module, name: str) -> None:
    """Compare names, shapes and the features of the golden image with the published backbone `name`."""
    record = json.loads((golden.FOLDER / "backbones.json").read_text())[name]
    state = {f"backbone.{key}": list(value.shape) for key, value in backbone.state_dict().items()}
    listing = "\n".join(f"{key}:{shape}" for key, shape in sorted(state.items()))
    assert len(state) == record["entries"]
    assert hashlib.sha256(listing.encode()).hexdigest()[:16] == record["sha256_16"]

    golden.fill_by_name(backbone, "backbone.")
    (height, width), (padded_height, padded_width) = record["image"], record["padded"]
    image = (golden.golden_image(height, width) - PIXEL_MEAN) / PIXEL_STD
    image = F.pad(image, (0, padded_width - width, 0, padded_height - height))
    with torch.no_grad():
        features = backbone.eval()(image[None])
    assert list(features) == list(record["mean_std_absmax"])
    for key, figures in record["mean_std_absmax"].items():
        feature = features[key].double()
        actual = torch.stack([feature.mean(), feature.std(), feature.abs().max()])
        torch.testing.assert_close(actual, torch.tensor(figures).double(), rtol=1e-4, atol=1e-6)


def gradients(backbone: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Return the gradients of one training step whose loss reads every feature map."""
    backbone.zero_grad()
    torch.manual_seed(0)  # stochastic depth
    sum(feature.square().mean() for feature in backbone(image).values()).backward()
    return {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}
