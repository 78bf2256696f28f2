"""Pictures: what must be where in them. How they look is judged by eye."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mask2former.d2.data import Metadata
from mask2former.visualization import (
    _class_style,
    comparison_sheet,
    contact_sheet,
    draw_instances,
    draw_panoptic,
    draw_semantic,
    loss_curve,
)

RED, GREEN = [250, 0, 0], [0, 250, 0]


@pytest.fixture
def metadata() -> Metadata:
    names = ["cat", "sky"]
    return Metadata(
        name="two",
        thing_classes=names,
        stuff_classes=names,
        thing_colors=[RED, GREEN],
        stuff_colors=[RED, GREEN],
    )


def grey(height: int = 480, width: int = 640) -> np.ndarray:
    return np.full((height, width, 3), 100, dtype=np.uint8)


def quarters(height: int = 480, width: int = 640) -> np.ndarray:
    ids = np.zeros((height, width), dtype=np.int32)
    ids[: height // 2, : width // 2] = 1
    ids[: height // 2, width // 2 :] = 2
    ids[height // 2 :, : width // 2] = 3
    return ids


SEGMENTS = [
    {"id": 1, "category_id": 0, "isthing": True},
    {"id": 2, "category_id": 0, "isthing": True},
    {"id": 3, "category_id": 1, "isthing": False},
]


def test_things_are_named_where_their_ids_lie_among_all_classes() -> None:
    metadata = Metadata(
        name="sky first",
        thing_classes=["cat"],
        thing_colors=[RED],
        stuff_classes=["sky", "cat"],
        stuff_colors=[GREEN, RED],
        thing_dataset_id_to_contiguous_id={7: 1},
    )
    assert [_class_style(metadata, 1, True), _class_style(metadata, 0, False)] == [
        ("cat", tuple(RED)),
        ("sky", tuple(GREEN)),
    ]


def test_panoptic_paints_every_segment_and_leaves_void(metadata: Metadata) -> None:
    picture = draw_panoptic(grey(), torch.from_numpy(quarters()), SEGMENTS, metadata)
    assert picture.shape == (480, 640, 3)
    np.testing.assert_array_equal(picture[20, 20], [175, 50, 50])
    np.testing.assert_array_equal(picture[470, 20], [50, 175, 50])
    np.testing.assert_array_equal(picture[470, 630], [100, 100, 100])
    assert np.abs(picture[20, 620].astype(int) - picture[20, 20]).sum() > 40  # two cats, two colours


def test_labels_show_names_and_scores(metadata: Metadata) -> None:
    """A score makes labels longer, inside the labelled segments only."""
    ids = quarters()
    segments = [{**segment, "score": 0.87} for segment in SEGMENTS]
    without, with_score = (draw_panoptic(grey(), ids, s, metadata).astype(int) for s in (SEGMENTS, segments))
    changed = (without != with_score).any(axis=2)
    assert changed[:240, :320].any()
    assert not changed[240:, 320:].any()
    given = draw_panoptic(grey(), ids, SEGMENTS, metadata, scores=[0.87] * 3)
    np.testing.assert_array_equal(given, with_score)


def test_small_images_are_drawn_larger(metadata: Metadata) -> None:
    picture = draw_panoptic(grey(48, 64), quarters(48, 64), SEGMENTS, metadata)
    assert picture.shape == (480, 640, 3)
    np.testing.assert_array_equal(picture[20, 20], [175, 50, 50])


def test_instances_small_ones_on_top(metadata: Metadata) -> None:
    masks = np.zeros((2, 480, 640), dtype=bool)
    masks[0, 10:60, 10:60] = True
    masks[1] = True
    picture = draw_instances(grey(), masks, [1, 0], metadata, scores=torch.tensor([0.9, 0.8]))
    np.testing.assert_array_equal(picture[470, 20], [175, 50, 50])
    assert picture[12, 12, 1] > picture[12, 12, 0]


def test_semantic_leaves_the_ignore_label(metadata: Metadata) -> None:
    labels = np.full((480, 640), 255)
    labels[:, :320] = 1
    picture = draw_semantic(grey(), labels, metadata)
    np.testing.assert_array_equal(picture[20, 20], [50, 175, 50])
    np.testing.assert_array_equal(picture[20, 620], [100, 100, 100])


def test_nothing_to_draw_and_nothing_known() -> None:
    nothing = Metadata()
    image = grey()
    np.testing.assert_array_equal(draw_panoptic(image, np.zeros((480, 640), int), [], nothing), image)
    np.testing.assert_array_equal(draw_instances(image, np.zeros((0, 480, 640)), [], nothing), image)
    assert (draw_semantic(image, np.zeros((480, 640), int), nothing) != image).any()
    absent = draw_panoptic(image, np.zeros((480, 640), int), [{"id": 1, "category_id": 7}], nothing)
    np.testing.assert_array_equal(absent, image)


def test_colors_of_many_instances_differ() -> None:
    masks = np.zeros((12, 480, 640), dtype=bool)
    for index in range(12):
        masks[index, :, index * 50 : index * 50 + 50] = True
    picture = draw_instances(grey(), masks, [0] * 12, Metadata())
    colors = {tuple(picture[2, index * 50 + 25]) for index in range(12)}
    assert len(colors) == 12


def test_wrong_inputs(metadata: Metadata) -> None:
    with pytest.raises(ValueError, match=r"expected an RGB uint8 image .* float64"):
        draw_semantic(grey() / 255, np.zeros((480, 640), int), metadata)
    with pytest.raises(ValueError, match=r"mask of \(4, 4\) does not fit an image of \(480, 640\)"):
        draw_instances(grey(), np.ones((1, 4, 4)), [0], metadata)


def test_contact_sheet_keeps_proportions() -> None:
    sheet = contact_sheet([[grey(100, 50), grey(50, 100)], [grey(10, 10)]], ["a", "b"], cell=(100, 100))
    assert sheet.shape == (30 + 2 * 108 + 8, 8 + 2 * 108, 3)
    painted = (sheet == 100).all(axis=2)
    assert painted[30:138, :116].sum() == 100 * 50
    assert painted[138:, :].sum() == 100 * 100
    with pytest.raises(ValueError, match="at most 1 images"):
        contact_sheet([[grey(), grey()]], ["a"])
    with pytest.raises(ValueError, match="a sheet needs rows"):
        contact_sheet([], ["a"])


@pytest.mark.parametrize(("count", "columns", "shape"), [(3, 2, (2, 6)), (1, 4, (1, 3))])
def test_comparison_sheet(metadata: Metadata, count: int, columns: int, shape: tuple[int, int]) -> None:
    panoptic = (quarters(48, 64), SEGMENTS)
    sheet = comparison_sheet([(grey(48, 64), panoptic, panoptic)] * count, metadata, columns=columns, cell=(160, 120))
    assert sheet.shape == (30 + shape[0] * 128 + 8, 8 + shape[1] * 168, 3)
    image, truth, prediction = (sheet[30:150, 8 + i * 168 : 168 + i * 168] for i in range(3))
    assert (image == 100).all()
    np.testing.assert_array_equal(truth, prediction)
    assert (truth != image).any()


def write_metrics(path: Path, values: list[float]) -> str:
    lines = [json.dumps({"iteration": 20 * i, "total_loss": value}) for i, value in enumerate(values)]
    path.write_text("\n".join([*lines, json.dumps({"iteration": 5, "lr": 0.1}), '{"iteration": 7, "to']))
    return str(path)


def blue(picture: np.ndarray) -> np.ndarray:
    return (picture[..., 2].astype(int) - picture[..., 0]) > 30


def test_loss_curve_falls(tmp_path: Path) -> None:
    picture = loss_curve(write_metrics(tmp_path / "metrics.json", [50 / (1 + i) for i in range(40)]))
    assert picture.shape == (480, 800, 3)
    rows = np.nonzero(blue(picture))
    left = rows[0][rows[1] < 150].min()
    right = rows[0][rows[1] > 700].mean()
    assert left < 150 < 350 < right


@pytest.mark.parametrize("values", [[3.0], [2.0, 2.0], [1e-9, 2e-9], [-5.0, 1e6], [1.0, float("nan"), 2.0]])
def test_loss_curve_of_unusual_values(tmp_path: Path, values: list[float]) -> None:
    assert blue(loss_curve(write_metrics(tmp_path / "metrics.json", values))).any()


def test_loss_curve_without_values(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"metrics\.json: no finite value of 'total_loss'"):
        loss_curve(write_metrics(tmp_path / "metrics.json", []))
