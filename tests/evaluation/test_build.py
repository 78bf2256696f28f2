"""Which evaluators a data set gets."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from mask2former.d2.config import CfgNode
from mask2former.d2.data import MetadataCatalog
from mask2former.d2.evaluation import DatasetEvaluator, DatasetEvaluators
from mask2former.evaluation import EVALUATOR_REGISTRY, build_evaluators


def config(*, panoptic: bool = True, instance: bool = True, semantic: bool = True, boundary: bool = False) -> CfgNode:
    test = {"PANOPTIC_ON": panoptic, "INSTANCE_ON": instance, "SEMANTIC_ON": semantic, "BOUNDARY_ON": boundary}
    return CfgNode({"MODEL": {"MASK_FORMER": {"TEST": test}}, "TEST": {"PICTURES": 0, "REPORT": False}})


@pytest.fixture
def panoptic_set(make_dataset: Callable[..., str]) -> str:
    return make_dataset({1: (np.zeros((3, 3), dtype=np.int32), [])})


@pytest.fixture
def set_of_type() -> Iterator[Callable[[str], str]]:
    def make(evaluator_type: str) -> str:
        MetadataCatalog.get("set_of_type").set(evaluator_type=evaluator_type)
        return "set_of_type"

    yield make
    MetadataCatalog.remove("set_of_type")


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        ({}, {"panoptic_seg", "segm", "sem_seg"}),
        ({"instance": False}, {"panoptic_seg", "sem_seg"}),
        ({"panoptic": False, "semantic": False}, {"segm"}),
        ({"boundary": True}, {"panoptic_seg", "boundary_panoptic_seg", "segm", "boundary_segm", "sem_seg"}),
    ],
)
def test_a_panoptic_set_is_scored_on_every_kind_of_output(
    panoptic_set: str, switches: dict[str, bool], expected: set[str]
) -> None:
    evaluators = build_evaluators(config(**switches), panoptic_set)
    evaluators.reset()
    assert set(evaluators.evaluate()) == expected


@pytest.mark.parametrize("evaluator_type", ["ade20k_panoptic_seg", "mapillary_vistas_panoptic_seg"])
def test_other_panoptic_sets_are_scored_alike(panoptic_set: str, evaluator_type: str) -> None:
    evaluators = DatasetEvaluators(EVALUATOR_REGISTRY.get(evaluator_type)(config(), panoptic_set, None))
    evaluators.reset()
    assert set(evaluators.evaluate()) == {"panoptic_seg", "segm", "sem_seg"}


def test_nothing_to_score(panoptic_set: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be scored .*PANOPTIC_ON and INSTANCE_ON and SEMANTIC_ON are False"):
        build_evaluators(config(panoptic=False, instance=False, semantic=False), panoptic_set)


def test_evaluators_say_what_they_need(set_of_type: Callable[[str], str]) -> None:
    for name, function in EVALUATOR_REGISTRY:
        is_instance = name in ("coco", "cityscapes_instance")
        assert function.class_list == ("thing_classes" if is_instance else "stuff_classes"), name
    with pytest.raises(ValueError, match=r"'set_of_type' cannot be scored while .*TEST\.INSTANCE_ON is False"):
        build_evaluators(config(instance=False), set_of_type("coco"))


def test_unknown_type_lists_the_known_ones(set_of_type: Callable[[str], str]) -> None:
    with pytest.raises(KeyError, match=r"'depth'; known types are: ade20k_panoptic_seg, .*coco, .*sem_seg"):
        build_evaluators(config(), set_of_type("depth"))
    with pytest.raises(KeyError, match="evaluator_type None"):
        build_evaluators(config(), "a_set_without_metadata")


def test_a_plug_in_registers_its_own(set_of_type: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def depth(cfg: CfgNode, dataset_name: str, output_dir: str | None) -> list[DatasetEvaluator]:
        asked.append((dataset_name, output_dir))
        return [DatasetEvaluator()]

    monkeypatch.setattr(EVALUATOR_REGISTRY, "_obj_map", dict(EVALUATOR_REGISTRY))
    EVALUATOR_REGISTRY.register(depth)
    build_evaluators(config(), set_of_type("depth"), "somewhere")
    assert asked == [("set_of_type", "somewhere")]
