"""A step in parts is a step in one: losses and gradients, with the counts of all targets, in one and two processes."""

import json

import pytest
import torch
import torch.distributed as dist

from mask2former.engine.accumulation import accumulating, check_accumulation, mean_losses, split_batch
from mask2former.modeling.whole_batch import whole_batch
from tests.engine.test_trainer import assert_identical, train
from tests.helpers import distributed_run
from tests.helpers.models import example, small_model, total
from tests.helpers.processes import run_processes
from tests.helpers.training import TinyModel, TinyTrainer, tiny_cfg

LABELS = [(), (0, 4, 1), (2,), (1, 1, 3, 0, 2)]


def losses_and_gradients(batch, parts, **changes):
    model = small_model(MODEL__RESNETS__NORM="FrozenBN", **changes).train()
    seen = []
    with distributed_run.fixed_points():
        pieces = split_batch(batch, parts)
        for piece in pieces:
            with accumulating(model, batch, parts, is_last=piece is pieces[-1]):
                losses = model(piece)
                (total(losses) / parts).backward()
            seen.append({name: loss.detach() for name, loss in losses.items()})
    assert whole_batch() is None
    return mean_losses(seen), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def batch_of(labels):
    return [example(labels=each, seed=seed) for seed, each in enumerate(labels)]


def assert_equal_steps(batch, parts, **changes):
    losses, gradients = losses_and_gradients(batch, 1, **changes)
    part_losses, part_gradients = losses_and_gradients(batch, parts, **changes)
    assert part_losses.keys() == losses.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(part_losses[name], loss, rtol=1e-5, atol=1e-6, msg=name)
    assert part_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(part_gradients[name], gradient, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("weights", [[], [1.0, 3.0, 0.5, 2.0, 0.1]])
def test_parts_make_the_gradients_of_the_whole(parts, weights):
    """One of the images is empty, and the parts have very different numbers of masks."""
    assert_equal_steps(batch_of(LABELS), parts, MODEL__MASK_FORMER__WEIGHT_OF_EACH_CLASS=weights)


@pytest.mark.parametrize("labels", [[(), (), (3,), ()], [(), (), (), ()]])
def test_few_masks_or_none(labels):
    assert_equal_steps(batch_of(labels), 4)
    assert_equal_steps(batch_of(labels), 4, MODEL__MASK_FORMER__NO_OBJECT_WEIGHT=0.0) if any(labels) else None


def test_more_targets_than_queries():
    assert_equal_steps(batch_of([(0, 1, 2, 3), (1,)]), 2, MODEL__MASK_FORMER__NUM_OBJECT_QUERIES=3)


def test_pixels_of_the_whole_count():
    def labelled(valid, seed):
        label = torch.full((64, 64), 255)
        label[:valid] = 1
        return {"image": example(seed=seed)["image"], "sem_seg": label}

    assert_equal_steps(
        [labelled(40, 0), labelled(3, 1)],
        2,
        MODEL__META_ARCHITECTURE="SemanticSegmentor",
        MODEL__SEM_SEG_HEAD__NAME="PerPixelBaselineHead",
    )


def test_mean_of_losses_that_not_all_parts_have():
    one, three = torch.tensor(1.0), torch.tensor(3.0)
    assert mean_losses([{"a": one, "b": three}, {"a": three}]) == {"a": 2.0, "b": 1.5}


class Plain(TinyTrainer):
    @classmethod
    def build_model(cls, cfg):
        model = TinyModel(random=False)
        model.register_forward_pre_hook(lambda module, args: cls.sizes.append(len(args[0])))
        return model


def test_trainer_takes_its_batches_in_parts(tmp_path):
    Plain.sizes = sizes = []
    whole, steps = train(tiny_cfg(tmp_path / "whole"), trainer_class=Plain)
    assert sizes == [4] * 6
    sizes.clear()
    parts, part_steps = train(tiny_cfg(tmp_path / "parts", ACCUMULATION_STEPS=4), trainer_class=Plain)
    assert sizes == [1] * 24
    for iteration, step in steps.items():
        assert part_steps[iteration] == pytest.approx(step, rel=1e-4)
    for name, value in whole.raw_model.state_dict().items():
        torch.testing.assert_close(parts.raw_model.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_accumulation_repeats_and_resumes_bit_for_bit(tmp_path):
    cfg = tiny_cfg(tmp_path / "straight", ACCUMULATION_STEPS=2)
    straight, _ = train(cfg)
    cfg = tiny_cfg(tmp_path / "halves", ACCUMULATION_STEPS=2)
    train(cfg)
    (tmp_path / "halves" / "last_checkpoint").write_text("model_0000002.pth")
    resumed, steps = train(cfg, resume=True)
    assert list(steps) == [3, 4, 5]
    assert_identical(straight.raw_model.state_dict(), resumed.raw_model.state_dict())


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="PyTorch was built without gloo")
def test_processes_and_parts_train_as_one(tmp_path):
    """Real criterion, classes with weights of their own, one image without objects."""
    ended = run_processes(distributed_run.main, str(tmp_path / "two"), 2, folder=tmp_path)
    assert [process.code for process in ended] == [0, 0], ended
    distributed_run.main(str(tmp_path / "one"))
    one, two = (torch.load(tmp_path / name / "model_final.pth", weights_only=True) for name in ("one", "two"))
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, rtol=1e-6, atol=1e-9)
    lines = [json.loads((tmp_path / name / "metrics.json").read_text().splitlines()[-1]) for name in ("one", "two")]
    for key in ("total_loss", "loss_ce", "loss_mask", "loss_dice_0", "grad_norm"):
        assert lines[1][key] == pytest.approx(lines[0][key], rel=1e-4)


@pytest.mark.parametrize(("parts", "processes"), [(3, 1), (4, 2), (0, 1), (16, 1)])
def test_batches_that_cannot_be_divided_are_refused(tmp_path, parts, processes):
    cfg = tiny_cfg(tmp_path, ACCUMULATION_STEPS=parts)
    with pytest.raises(ValueError, match=f"SOLVER.ACCUMULATION_STEPS is {parts}, .*multiple of"):
        check_accumulation(cfg, world_size=processes)
    check_accumulation(tiny_cfg(tmp_path, ACCUMULATION_STEPS=2), world_size=2)


def test_batch_of_another_size_is_not_cut():
    """A loader of one's own may give what the check before the first step does not know."""
    assert split_batch([{"n": 0}, {"n": 1}, {"n": 2}, {"n": 3}], 2) == [[{"n": 0}, {"n": 1}], [{"n": 2}, {"n": 3}]]
    for size in (5, 1):
        with pytest.raises(ValueError, match=f"batch of {size} images cannot be divided into .* 2"):
            split_batch([{}] * size, 2)
