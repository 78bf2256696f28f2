"""Class rows by name, by values of weights."""

import logging

import pytest
import torch
from torch import nn

from mask2former.checkpoint import load_weights
from mask2former.checkpoint.class_rows import known_classes, match_classes


class Model(nn.Module):
    """A class head with or without a row for "no object"."""

    def __init__(self, classes, *, no_object=True):
        super().__init__()
        self.sem_seg_head = nn.Module()
        self.sem_seg_head.predictor = nn.Module()
        self.sem_seg_head.predictor.class_embed = nn.Linear(4, classes + no_object)
        self.sem_seg_head.predictor.other = nn.Linear(4, 4)


def categories(*names):
    return [{"name": name} for name in names]


def load(tmp_path, source, target, old, new, **options):
    content = {"model": source.state_dict()}
    if old:
        content["categories"] = categories(*old)
    torch.save(content, tmp_path / "model.pth")
    return load_weights(target, tmp_path / "model.pth", categories=categories(*new), **options)


def head(model):
    linear = model.sem_seg_head.predictor.class_embed
    return torch.cat([linear.weight, linear.bias[:, None]], dim=1).detach().clone()


def test_rows_of_equal_names_stay_and_others_begin_anew(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    source, target = Model(3), Model(4)
    old, initial = head(source), head(target)
    names = ("boat", "Traffic_Light", "person", "buoy")
    report = load(tmp_path, source, target, ("person", "car", "traffic light"), names)
    rows = head(target)
    assert torch.equal(rows[1], old[2])
    assert torch.equal(rows[2], old[0])
    assert torch.equal(rows[-1], old[-1])  # no object
    assert torch.equal(rows[[0, 3]], initial[[0, 3]])
    assert torch.equal(target.sem_seg_head.predictor.other.weight, source.sem_seg_head.predictor.other.weight)
    assert report.class_rows.kept == {"Traffic_Light": 2, "person": 0}
    assert report.class_rows.new == ("boat", "buoy")
    assert not report.reinitialised
    assert "kept by name: Traffic_Light, person. New, with random values: boat, buoy" in caplog.text


def test_equal_numbers_of_other_classes_are_not_taken_for_the_same(tmp_path):
    source, target = Model(2), Model(2)
    old, initial = head(source), head(target)
    load(tmp_path, source, target, ("cat", "dog"), ("dog", "cow"))
    assert torch.equal(head(target), torch.stack([old[1], initial[1], old[2]]))


def test_other_order_is_followed(tmp_path):
    source, target = Model(2), Model(2)
    old = head(source)
    report = load(tmp_path, source, target, ("cat", "dog"), ("dog", "cat"))
    assert torch.equal(head(target), old[[1, 0, 2]])
    assert report.class_rows.new == ()
    assert not report.complete


@pytest.mark.parametrize("old", [(), ("cat", "dog")])
def test_unknown_or_equal_classes_go_by_number(tmp_path, old):
    source, target = Model(2), Model(2)
    report = load(tmp_path, source, target, old, ("Cat", "dog"), strict=True)
    assert torch.equal(head(target), head(source))
    assert report.class_rows is None


def test_unknown_classes_of_another_number_begin_anew(tmp_path):
    source, target = Model(3), Model(2)
    initial = head(target)
    report = load(tmp_path, source, target, (), ("cat", "dog"))
    assert torch.equal(head(target), initial)
    assert len(report.reinitialised) == 2


def test_head_without_a_row_for_no_object(tmp_path):
    source, target = Model(2, no_object=False), Model(3, no_object=False)
    old, initial = head(source), head(target)
    load(tmp_path, source, target, ("cat", "dog"), ("dog", "cow", "cat"))
    assert torch.equal(head(target), torch.stack([old[1], initial[1], old[0]]))


def test_list_of_classes_that_is_not_that_of_the_head(tmp_path):
    source, target = Model(3), Model(2)
    report = load(tmp_path, source, target, ("cat",), ("cat", "dog"))  # a file that says one class and has three
    assert report.class_rows is None
    assert len(report.reinitialised) == 2


def test_names_given_twice():
    rows = match_classes(categories("road", "road", "sky"), categories("sky", "Road"))
    assert rows.kept == {"sky": 2, "Road": 0}


def test_published_files_are_known_by_their_name():
    name = "coco/instance-segmentation/maskformer2_R50_bs16_50ep"
    names = [category["name"] for category in known_classes(f"zoo://{name}", {})]
    assert len(names) == 80
    assert names[0] == "person"
    assert known_classes("/somewhere/model_final_3c8ec9.pkl", {}) == known_classes(f"zoo://{name}", {})
    ade = known_classes("zoo://ade20k/semantic-segmentation/maskformer2_R50_bs16_160k", {})
    assert (len(ade), ade[0]["name"]) == (150, "wall")
    assert known_classes("model_final.pth", {}) == []


def test_transformers_say_their_classes():
    content = {"config": {"id2label": {"10": "k", "0": "a", "2": "c"}}}
    assert [category["name"] for category in known_classes("folder", content)] == ["a", "c", "k"]
