"""The catalogs of data sets and metadata."""

from collections.abc import Iterator

import pytest

from mask2former.d2.data import DatasetCatalog, Metadata, MetadataCatalog

NAME = "catalog_test_set"


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    for catalog in (DatasetCatalog, MetadataCatalog):
        if NAME in catalog:
            catalog.remove(NAME)


def test_data_sets_are_loaded_when_asked_for() -> None:
    calls = []
    DatasetCatalog.register(NAME, lambda: calls.append(1) or [{"image_id": 1}])
    assert not calls
    assert DatasetCatalog.get(NAME) == [{"image_id": 1}]
    assert calls
    assert NAME in DatasetCatalog.list()
    with pytest.raises(AssertionError, match="already registered"):
        DatasetCatalog.register(NAME, list)
    DatasetCatalog.remove(NAME)
    assert NAME not in DatasetCatalog


def test_unknown_data_set_lists_the_known() -> None:
    DatasetCatalog.register(NAME, list)
    with pytest.raises(KeyError, match=f"catalog_misspelt.*not registered.*{NAME}"):
        DatasetCatalog.get("catalog_misspelt")
    with pytest.raises(AssertionError):
        DatasetCatalog.register("catalog_not_callable", [{"image_id": 1}])


def test_metadata_is_one_object_per_name() -> None:
    metadata = MetadataCatalog.get(NAME).set(thing_classes=["a", "b"], evaluator_type="sem_seg")
    assert isinstance(metadata, Metadata)
    assert MetadataCatalog.get(NAME) is metadata
    assert metadata.name == NAME
    assert metadata.thing_classes == ["a", "b"]
    assert metadata.as_dict() == {"name": NAME, "thing_classes": ["a", "b"], "evaluator_type": "sem_seg"}
    assert NAME in MetadataCatalog.list()
    metadata.as_dict()["extra"] = 1
    assert metadata.get("extra") is None
    assert metadata.get("extra", 5) == 5
    assert metadata.get("thing_classes") == ["a", "b"]


def test_metadata_cannot_change() -> None:
    metadata = MetadataCatalog.get(NAME)
    metadata.thing_classes = ["a"]
    metadata.thing_classes = ["a"]
    with pytest.raises(AssertionError, match=f"thing_classes.*{NAME}"):
        metadata.thing_classes = ["b"]
    with pytest.raises(AssertionError):
        metadata.set(thing_classes=["a", "b"])
    assert metadata.thing_classes == ["a"]


def test_missing_metadata_names_key_and_data_set() -> None:
    metadata = MetadataCatalog.get(NAME)
    with pytest.raises(AttributeError, match=f"stuff_classes.*{NAME}"):
        metadata.stuff_classes  # noqa: B018
    metadata.thing_classes = ["a"]
    with pytest.raises(AttributeError, match=f"stuff_classes.*{NAME}.*thing_classes"):
        metadata.stuff_classes  # noqa: B018
    with pytest.raises(AssertionError):
        MetadataCatalog.get("")
    assert not hasattr(Metadata(), "thing_classes")
