"""The event storage."""

import pytest
import torch

from mask2former.d2.events import EventStorage, get_event_storage


def test_current_storage_is_the_innermost() -> None:
    with pytest.raises(AssertionError, match="EventStorage"):
        get_event_storage()
    with EventStorage() as outer:
        assert get_event_storage() is outer
        with EventStorage(5) as inner:
            assert get_event_storage() is inner
            assert inner.iter == inner.iteration == 5
        assert get_event_storage() is outer
    with pytest.raises(AssertionError, match="EventStorage"):
        get_event_storage()


def test_scalars_keep_their_iteration() -> None:
    storage = EventStorage(10)
    storage.put_scalar("loss", torch.tensor(2.0))
    storage.step()
    storage.put_scalars(loss=4.0, accuracy=0.5)
    storage.put_scalar("ap", 30, smoothing_hint=False, cur_iter=7)
    assert storage.latest() == {"loss": (4.0, 11), "accuracy": (0.5, 11), "ap": (30.0, 7)}
    assert storage.history("loss").values() == [(2.0, 10), (4.0, 11)]
    assert set(storage.histories()) == {"loss", "accuracy", "ap"}
    assert storage.smoothing_hints() == {"loss": True, "accuracy": True, "ap": False}
    storage.iter = 3
    assert storage.iter == 3
    with pytest.raises(KeyError, match="missing"):
        storage.history("missing")
    with pytest.raises(AssertionError, match="smoothing_hint"):
        storage.put_scalar("ap", 31, smoothing_hint=True)


def test_noisy_scalars_are_smoothed_over_iterations() -> None:
    storage = EventStorage()
    for iteration, value in enumerate([100.0, 1.0, 2.0, 9.0]):
        storage.iter = iteration
        storage.put_scalar("noisy", value)
        storage.put_scalar("exact", value, smoothing_hint=False)
    assert storage.latest_with_smoothing_hint(3) == {"noisy": (2.0, 3), "exact": (9.0, 3)}
    assert storage.count_samples("noisy", 3) == 3
    assert storage.count_samples("noisy", 100) == 4


def test_name_scope() -> None:
    storage = EventStorage()
    with storage.name_scope("head"):
        storage.put_scalar("loss", 1.0)
        with storage.name_scope("inner/"):
            storage.put_scalar("loss", 2.0)
    storage.put_scalar("loss", 3.0)
    assert [storage.latest()[name][0] for name in ("head/loss", "inner/loss", "loss")] == [1.0, 2.0, 3.0]


def test_images_are_accepted_and_cleared() -> None:
    storage = EventStorage()
    storage.put_image("sample", torch.zeros(3, 2, 2))
    storage.clear_images()
    assert storage.latest() == {}
