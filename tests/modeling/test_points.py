import pytest
import torch
from torch import Tensor

from mask2former.modeling import points as points_module
from mask2former.modeling.points import random_points, sample_points, sample_shared_points, uncertain_points

CPU = torch.device("cpu")


def test_random_points_fill_the_square_evenly_and_follow_the_seed() -> None:
    torch.manual_seed(0)
    points = random_points(2, 20000, device=CPU)
    assert points.shape == (2, 20000, 2)
    assert points.abs().max() <= 1
    cells = ((points.flatten(0, 1) + 1) * 2).long()  # 4 x 4 cells of 2500 points, give or take 48
    counts = (4 * cells[:, 0] + cells[:, 1]).bincount(minlength=16)
    assert (counts - 2500).abs().max() < 5 * 48
    later = random_points(2, 20000, device=CPU)
    assert not torch.equal(later, points)
    series = torch.stack([points[0, :, 0], points[0, :, 1], points[1, :, 0], later[0, :, 0]])
    assert (series.corrcoef() - torch.eye(4)).abs().max() < 0.04
    torch.manual_seed(0)
    assert torch.equal(random_points(2, 20000, device=CPU), points)


def test_points_on_other_devices_have_the_same_range(monkeypatch: pytest.MonkeyPatch) -> None:
    assert random_points(3, 5, device=torch.device("meta")).shape == (3, 5, 2)
    monkeypatch.setattr(torch, "rand", lambda *shape, device: torch.tensor([0.0, 0.75]).expand(shape).clone())
    assert random_points(3, 5, device=torch.device("meta"))[1, 2].tolist() == [-1.0, 0.5]


def test_a_cpu_works_in_cache_and_others_within_a_gigabyte() -> None:
    assert 4 * points_module.values_at_once(CPU) <= 2**23
    assert 4 * points_module.values_at_once(torch.device("cuda")) == 2**30


def test_pixel_centres_read_pixels() -> None:
    maps = torch.arange(12.0).view(1, 3, 4)
    y, x = torch.meshgrid(torch.arange(3.0), torch.arange(4.0), indexing="ij")
    points = torch.stack([(2 * x + 1) / 4 - 1, (2 * y + 1) / 3 - 1], dim=-1).view(1, 12, 2)
    torch.testing.assert_close(sample_points(maps, points), maps.flatten(1))
    between = torch.zeros(1, 1, 2)  # between pixels 5 and 6 of the middle row
    assert sample_points(maps, between).item() == pytest.approx(5.5)
    assert sample_points(maps, torch.tensor([[[2.0, 0.0]]])).item() == 0


def test_uncertain_points_gather_at_the_boundary() -> None:
    torch.manual_seed(0)
    logits = torch.linspace(-1, 1, 64).expand(1, 64, 64)  # undecided at x = 0
    points = uncertain_points(logits, num_points=400, oversample_ratio=4, importance_sample_ratio=0.75)
    assert points.shape == (1, 400, 2)
    assert points.abs().max() <= 1
    distance = points[0, :, 0].abs()
    # The 300 nearest of 1600 candidates, but for those at the upper and lower edge, where zero padding fades logits.
    assert (distance[:300] < 0.24).float().mean() > 0.9
    assert distance[300:].max() > 0.6


def test_without_importance_points_are_uniform() -> None:
    torch.manual_seed(0)
    points = uncertain_points(torch.zeros(3, 8, 8), num_points=6400, oversample_ratio=1, importance_sample_ratio=0)
    for each in points:
        cells = (4 * (each + 1)).long() @ torch.tensor([1, 8])  # 64 cells of 100 points each, give or take 10
        assert (torch.bincount(cells, minlength=64) - 100).abs().max() < 50
    assert not torch.equal(points[0], points[1])


def test_no_masks_give_no_points() -> None:
    points = uncertain_points(torch.zeros(0, 8, 8), num_points=50, oversample_ratio=3, importance_sample_ratio=0.75)
    assert points.shape == (0, 50, 2)
    assert sample_points(torch.zeros(0, 8, 8), points).shape == (0, 50)


@pytest.mark.parametrize("count", [0, 1, 7, 20])
def test_shared_points_read_what_points_of_each_map_read(count: int) -> None:
    torch.manual_seed(0)
    maps, points = torch.randn(count, 6, 9), random_points(31, device=CPU)
    expected = sample_points(maps, points.expand(count, -1, -1))
    assert torch.equal(sample_shared_points(maps, points), expected)


@pytest.mark.parametrize("at_once", [1, 2 * 6 * 120, 10**9])
def test_each_map_chooses_the_least_certain_of_its_own_candidates(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    drawn: list[Tensor] = []

    def noted(*shape: int, device: torch.device) -> Tensor:
        drawn.append(random_points(*shape, device=device))
        return drawn[-1]

    monkeypatch.setattr(points_module, "values_at_once", lambda device: at_once)
    monkeypatch.setattr(points_module, "random_points", noted)
    torch.manual_seed(0)
    maps = torch.randn(5, 8, 8)
    points = uncertain_points(maps, num_points=40, oversample_ratio=3, importance_sample_ratio=0.75)
    uniform, candidates = drawn[0], torch.cat(drawn[1:])
    assert len(drawn) - 1 == {1: 5, 10**9: 1}.get(at_once, 3)
    assert torch.equal(points[:, 30:], uniform)
    assert len({tuple(one) for one in candidates.flatten(0, 1).tolist()}) == 5 * 120
    for m in range(5):
        logits = sample_points(maps[m : m + 1], candidates[m : m + 1])[0]
        nearest = candidates[m, logits.abs().argsort()[:30]]
        assert set(map(tuple, points[m, :30].tolist())) == set(map(tuple, nearest.tolist()))


def test_selection_elsewhere_than_on_a_cpu_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.rand(3, 50)

    class Elsewhere(torch.Tensor):
        device = torch.device("meta")

    found = points_module.smallest(values.as_subclass(Elsewhere), 9).as_subclass(Tensor)
    assert torch.equal(found.sort().values, points_module.smallest(values, 9).sort().values)
