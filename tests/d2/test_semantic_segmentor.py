"""The meta-architecture of heads that classify pixels, with a head that tells what it was called with."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mask2former.d2.modeling import META_ARCH_REGISTRY, Backbone, SemanticSegmentor


class Halving(Backbone):
    @property
    def size_divisibility(self) -> int:
        return 8

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"res2": x[:, :, ::2, ::2]}


class Echo(nn.Module):
    """Predicts the image, at full size."""

    ignore_value = 7

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[dict[str, Tensor], Tensor | None]] = []

    def forward(self, features: dict[str, Tensor], targets: Tensor | None) -> tuple[Any, dict[str, Tensor]]:
        self.calls.append((features, targets))
        if self.training:
            return None, {"loss_sem_seg": features["res2"].sum()}
        return features["res2"].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3), {}


@pytest.fixture
def model() -> SemanticSegmentor:
    return SemanticSegmentor(
        backbone=Halving(), sem_seg_head=Echo(), pixel_mean=[1.0, 2.0, 3.0], pixel_std=[1.0, 1.0, 2.0]
    )


def test_is_registered() -> None:
    assert META_ARCH_REGISTRY.get("SemanticSegmentor") is SemanticSegmentor


def test_training_pads_images_with_zero_and_labels_with_what_is_ignored(model: SemanticSegmentor) -> None:
    inputs = [
        {"image": torch.full((3, 6, 8), 5), "sem_seg": torch.ones(6, 8, dtype=torch.int64)},
        {"image": torch.full((3, 8, 4), 5), "sem_seg": torch.ones(8, 4, dtype=torch.int64)},
    ]
    losses = model(inputs)
    assert set(losses) == {"loss_sem_seg"}
    features, targets = model.sem_seg_head.calls[0]
    assert features["res2"][0, :, 0, 0].tolist() == [4.0, 3.0, 1.0]
    assert features["res2"][1, :, 0, 2].tolist() == [0.0, 0.0, 0.0]
    assert targets is not None
    assert targets.shape == (2, 8, 8)
    assert (targets[0, :6] == 1).all()
    assert (targets[0, 6:] == 7).all()
    assert (targets[1, :, 4:] == 7).all()


def test_evaluation_crops_and_resizes(model: SemanticSegmentor) -> None:
    model.eval()
    inputs = [{"image": torch.full((3, 6, 8), 5)}, {"image": torch.full((3, 8, 4), 5), "height": 16, "width": 10}]
    first, second = (result["sem_seg"] for result in model(inputs))
    assert model.sem_seg_head.calls[0][1] is None
    assert first.shape == (3, 6, 8)
    assert second.shape == (3, 16, 10)
    torch.testing.assert_close(second[0], torch.full((16, 10), 4.0))  # nothing of the padding is left


def test_statistics_are_no_part_of_the_weights(model: SemanticSegmentor) -> None:
    assert dict(model.state_dict()) == {}
