import pytest
import torch

from mask2former.modeling import points as points_module
from mask2former.modeling.points import sample_points, sample_shared_points, uncertain_points


def test_pixel_centres_read_pixels() -> None:
    maps = torch.arange(12.0).view(1, 1, 3, 4)
    y, x = torch.meshgrid(torch.arange(3.0), torch.arange(4.0), indexing="ij")
    points = torch.stack([(x + 0.5) / 4, (y + 0.5) / 3], dim=-1).view(1, 12, 2)
    torch.testing.assert_close(sample_points(maps, points), maps.flatten(2))
    between = torch.tensor([[[0.5, 0.5]]])  # between pixels 5 and 6 of the middle row
    assert sample_points(maps, between).item() == pytest.approx(5.5)
    assert sample_points(maps, torch.tensor([[[1.5, 0.5]]])).item() == 0


def test_uncertain_points_gather_at_the_boundary() -> None:
    torch.manual_seed(0)
    logits = torch.linspace(-1, 1, 64).expand(64, 64).view(1, 1, 64, 64)  # undecided at x = 0.5
    points = uncertain_points(logits, num_points=400, oversample_ratio=4, importance_sample_ratio=0.75)
    assert points.shape == (1, 1, 400, 2)
    assert ((points >= 0) & (points <= 1)).all()
    distance = (points[0, 0, :, 0] - 0.5).abs()
    # The 300 nearest of 1600 candidates, but for those at the upper and lower edge, where zero padding fades logits.
    assert (distance[:300] < 0.12).float().mean() > 0.9
    assert distance[300:].max() > 0.3


def test_without_importance_points_are_uniform() -> None:
    torch.manual_seed(0)
    points = uncertain_points(torch.zeros(3, 1, 8, 8), num_points=6400, oversample_ratio=1, importance_sample_ratio=0)
    for group in points[:, 0]:
        cells = (group * 8).long() @ torch.tensor([1, 8])  # 64 cells of 100 points each, give or take 10
        assert (torch.bincount(cells, minlength=64) - 100).abs().max() < 50
    assert not torch.equal(points[0], points[1])


def test_no_masks_give_no_points() -> None:
    points = uncertain_points(torch.zeros(0, 1, 8, 8), num_points=50, oversample_ratio=3, importance_sample_ratio=0.75)
    assert points.shape == (0, 1, 50, 2)
    assert sample_points(torch.zeros(0, 1, 8, 8), points[:, 0]).shape == (0, 1, 50)


@pytest.mark.parametrize("count", [0, 1, 7, 20])
def test_shared_points_read_what_points_of_each_map_read(count: int) -> None:
    torch.manual_seed(0)
    maps, points = torch.randn(count, 6, 9), torch.rand(31, 2)
    expected = sample_points(maps.unsqueeze(1), points.expand(count, -1, -1)).squeeze(1)
    assert torch.equal(sample_shared_points(maps, points), expected)


@pytest.mark.parametrize("at_once", [1, 10**9])
def test_maps_of_a_group_choose_from_the_same_candidates(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(points_module, "_CANDIDATE_VALUES", at_once)
    torch.manual_seed(0)
    maps = torch.randn(3, 2, 8, 8)
    torch.manual_seed(1)
    points = uncertain_points(maps, num_points=40, oversample_ratio=3, importance_sample_ratio=0.75)
    torch.manual_seed(1)
    uniform, candidates = torch.rand(3, 10, 2), torch.rand(3, 120, 2)
    for group in range(3):
        for m in range(2):
            logits = sample_points(maps[group, m].expand(1, 1, -1, -1), candidates[group : group + 1])[0, 0]
            nearest = candidates[group, logits.abs().argsort()[:30]]
            assert set(map(tuple, points[group, m, :30].tolist())) == set(map(tuple, nearest.tolist()))
            assert torch.equal(points[group, m, 30:], uniform[group])
