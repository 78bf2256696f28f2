"""The step that was not finite is written down, and comes out the same when it is run again."""

import io
import math
from unittest import mock

import numpy as np
import pytest
import torch

from mask2former.cli.commands import run_tool
from mask2former.d2.structures import BitMasks, Boxes, Instances
from mask2former.data.plain import from_plain, to_plain
from mask2former.engine.failed_step import replay_failed_step
from mask2former.engine.finite import NonFiniteError
from mask2former.engine.trainer import Trainer
from mask2former.modeling.masks import PackedMasks
from tests.helpers import distributed_run
from tests.helpers.models import small_cfg
from tests.helpers.training import TinyModel, TinyTrainer, tiny_cfg


class Poisoned(TinyTrainer):
    """The ninth image is not finite."""

    @classmethod
    def build_train_loader(cls, cfg, *, start_iteration=0):
        for batch in super().build_train_loader(cfg, start_iteration=start_iteration):
            for item in batch:
                if item["image_id"] == 9:
                    item["image"] = item["image"] * math.inf
            yield batch


def fail(cfg, trainer_class):
    with pytest.raises(NonFiniteError) as raised:
        trainer_class(cfg).train()
    return raised.value


def test_a_step_comes_out_the_same(tmp_path, caplog):
    error = fail(tiny_cfg(tmp_path, CHECKPOINT_PERIOD=0), Poisoned)
    path = tmp_path / "failed_step_0000002.pth"
    assert f"mask2former replay {path}" in caplog.text
    torch.rand(3)
    (step,) = replay_failed_step(path, Poisoned)
    assert not step.is_finite
    assert step.module == "backbone (Linear)"
    assert step.gradients[0] == "backbone.weight"
    for name, value in step.losses.items():
        assert f"{name} = {value}" in str(error)
    content = torch.load(path, weights_only=True)
    saved = torch.load(tmp_path / "model_interrupted.pth", weights_only=True)
    assert torch.equal(content["model"]["head.weight"], saved["model"]["head.weight"])
    assert [item["image_id"] for item in content["batches"][0]] == [8, 9, 10, 11]


def test_numbers_of_a_step_are_those_of_the_run(tmp_path):
    """Of a step whose gradient alone is not finite: its losses depend on weights, images and random numbers."""
    seen = {}

    class Exploding(TinyModel):
        def forward(self, batch):
            losses = super().forward(batch)
            seen.update({name: loss.item() for name, loss in losses.items()})
            if batch[0]["image_id"] == 12:
                losses["loss_ce"].register_hook(lambda gradient: gradient * math.nan)
            return losses

    class Trained(TinyTrainer):
        @classmethod
        def build_model(cls, cfg):
            return Exploding()

    fail(tiny_cfg(tmp_path), Trained)
    expected = dict(seen)
    (step,) = replay_failed_step(tmp_path / "failed_step_0000003.pth", Trained)
    assert {name: step.losses[name] for name in expected} == expected
    assert step.module is None
    assert step.gradients == ["backbone.weight", "backbone.bias", "head.weight"]


def test_mask2former_by_the_command(tmp_path, capsys):
    class Poisoned(Trainer):
        check_setup = staticmethod(lambda cfg: None)

        @classmethod
        def build_train_loader(cls, cfg, *, start_iteration=0):
            images = [distributed_run._image(index) for index in range(2)]
            images[1]["image"] = images[1]["image"].float().masked_fill(torch.eye(64) > 0, math.nan)
            while True:
                yield images

    settings = {"DATASETS__TRAIN": (), "DATASETS__TEST": (), "SOLVER__IMS_PER_BATCH": 2, "SEED": 1}
    fail(small_cfg(**settings, OUTPUT_DIR=str(tmp_path)), Poisoned)
    assert run_tool("replay", [str(tmp_path / "failed_step_0000000.pth")]) == 1
    output = capsys.readouterr().out
    assert "process 0: total_loss nan" in output
    assert "gradients that are not finite" in output


def test_a_step_that_cannot_be_written_does_not_hide_the_error(tmp_path, caplog):
    save = torch.save

    def full(content, path):
        if "batches" in content:
            raise OSError("No space left on device")
        save(content, path)

    with mock.patch("torch.save", full):
        error = fail(tiny_cfg(tmp_path), Poisoned)
    assert "loss_ce" in str(error)
    assert "failed_step_0000002.pth: No space left on device" in caplog.text


def test_inputs_survive_as_plain_data():
    masks = torch.rand(11, 5, 7) > 0.5
    fields = {"gt_classes": torch.arange(11), "gt_masks": PackedMasks.pack(masks), "gt_boxes": Boxes(torch.rand(11, 4))}
    inputs = [
        {"image": torch.rand(3, 5, 7), "height": 5, "file_name": "a.jpg", "instances": Instances((5, 7), **fields)},
        {"instances": Instances((5, 7), gt_masks=BitMasks(masks)), "none": None, "pair": (1, np.float64(2.5))},
    ]
    file = io.BytesIO()
    torch.save(to_plain(inputs), file)
    file.seek(0)
    first, second = from_plain(torch.load(file, weights_only=True))
    assert torch.equal(first["image"], inputs[0]["image"])
    assert (first["height"], first["file_name"]) == (5, "a.jpg")
    assert first["instances"].image_size == (5, 7)
    assert torch.equal(first["instances"].gt_masks.tensor, masks)
    assert torch.equal(first["instances"].gt_classes, torch.arange(11))
    assert torch.equal(first["instances"].gt_boxes.tensor, fields["gt_boxes"].tensor)
    assert torch.equal(second["instances"].gt_masks.tensor, masks)
    assert (second["none"], second["pair"]) == (None, [1, 2.5])
