from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from mask2former import model_zoo
from mask2former.analysis import count_flops, report_activations, report_flops
from tools.analyze_model import main

QUICKSTART = ["--model", "quickstart/panoptic"]


class _Convolution(nn.Module):
    """A 3x3 convolution as a model of images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)

    def forward(self, inputs: list[dict]) -> list[dict]:
        return [{"sem_seg": self.conv(inputs[0]["image"].float().unsqueeze(0))}]


def test_flops_are_multiply_adds_and_activations_outputs_of_convolutions() -> None:
    images = [{"image": torch.zeros(3, 100, 200)}]
    assert f"GFLOPs: {3 * 4 * 9 * 100 * 200 / 1e9:.2f}" in report_flops(_Convolution(), images)
    assert f"M activations: {4 * 100 * 200 / 1e6:.2f}" in report_activations(_Convolution(), images)


def test_tables_of_a_whole_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICKSTART, "--tasks", "parameter", "flop", "time", "--size", "32", "48", "MODEL.DEVICE", "cpu"]) == 0
    text = capsys.readouterr().out
    parameters = sum(p.numel() for p in model_zoo.get_model("quickstart/panoptic", device="cpu").parameters())
    assert f"{parameters:,}" in text
    assert re.search(r"scaled_dot_product_attention +[0-9.]+", text)
    assert "forward time on cpu: median" in text


def test_outputs_in_bands_of_rows_are_counted() -> None:
    """What a GPU or a small image does at once, a large one does in bands, while the graph is traced too."""
    model = model_zoo.get_model("quickstart/panoptic", device="cpu").eval()
    inputs = {"image": torch.zeros(3, 64, 64, dtype=torch.uint8), "height": 96, "width": 80}
    flops = []
    for max_bytes in (None, 2**16):
        model.max_inference_bytes = max_bytes
        flops.append(count_flops(model, inputs)["sem_seg_head"])
    assert flops[0] == flops[1] > 0


def test_no_images_are_an_error() -> None:
    with pytest.raises(ValueError, match="no images"):
        report_flops(_Convolution(), [])
