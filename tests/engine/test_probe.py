import pytest
import torch

from mask2former.engine.probe import GIB, Cost, Fit, Worst, free_memory, largest_batch, measure_step, worst_example
from tests.helpers.models import small_cfg

WORST = Worst(64, 96, 5)


class Machine:
    """Steps that take 1 GiB, and `each` for an image; at most `largest` images fit."""

    def __init__(self, each: float, largest: int = 100) -> None:
        self.each, self.largest = each, largest
        self.tried: list[int] = []

    def __call__(self, cfg: object, worst: Worst, batch: int, modules: object) -> Cost:
        self.tried.append(batch)
        if batch > self.largest:
            raise MemoryError("too many")
        return Cost(int((1 + self.each * batch) * GIB), 2.0 * batch)


def fit(machine: Machine, limit: int, device: str = "cpu", memory: int = 8 * GIB) -> Fit:
    return largest_batch(small_cfg(MODEL__DEVICE=device), WORST, limit, measure=machine, memory=memory)


def test_memory_bounds_the_batch_on_a_cpu() -> None:
    machine = Machine(each=1)
    found = fit(machine, 16)
    assert found.batch == 5  # 1 + 5 <= 0.75 * 8
    assert machine.tried == [1, 2]
    assert found.seconds == pytest.approx(10)
    assert "of 8.0 GiB free" in found.reason
    assert "96x64 with 5 objects" in found.reason


def test_a_batch_that_is_large_enough() -> None:
    found = fit(Machine(each=0.1), 16)
    assert (found.batch, found.seconds) == (16, pytest.approx(32))
    assert "free" not in found.reason
    assert fit(Machine(each=0.1), 1).batch == 1


def test_the_batch_is_tried_on_a_gpu() -> None:
    machine = Machine(each=0.5, largest=4)
    found = fit(machine, 16, device="cuda")
    assert machine.tried == [1, 2, 12, 6, 3]
    assert (found.batch, found.seconds) == (3, pytest.approx(6))
    machine = Machine(each=0.5)
    assert fit(machine, 16, device="cuda").batch == 12


def test_not_one_image_fits() -> None:
    with pytest.raises(MemoryError, match=r"one image of 96x64 with 5 objects takes 3\.0 GiB of 2\.0 GiB"):
        fit(Machine(each=2), 16, memory=2 * GIB)


def test_memory_that_nobody_tells() -> None:
    found = largest_batch(small_cfg(), WORST, 16, measure=lambda *_: Cost(None, 1.0), memory=8 * GIB)
    assert (found.batch, found.seconds) == (2, 2.0)


def test_a_real_step() -> None:
    cfg = small_cfg()
    one, four = (measure_step(cfg, Worst(128, 128, 9), batch) for batch in (1, 4))
    assert one.memory is not None
    assert four.memory is not None
    assert 10**8 < one.memory < four.memory < 4 * GIB
    assert one.seconds > 0


def test_a_process_that_the_system_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MemoryError, match="1 images of 64x64 with 1 objects does not fit"):
        measure_step(small_cfg(), Worst(64, 64, 1), 1, ["tests.helpers.killed"])


def test_worst_example() -> None:
    example = worst_example(Worst(16, 24, 11), num_classes=3)
    assert example["image"].shape == (3, 16, 24)
    assert example["image"].dtype == torch.uint8
    assert example["instances"].gt_classes.tolist() == [0, 1, 2] * 3 + [0, 1]
    assert example["instances"].gt_masks.tensor.shape == (11, 16, 24)


def test_free_memory_of_this_machine() -> None:
    free = free_memory("cpu")
    assert free is None or 2**20 < free < 2**50
