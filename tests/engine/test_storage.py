"""Scalars of long runs take little memory, with either source of Detectron2's names."""

from mask2former.engine.storage import HISTORY, bounded_event_storage


def test_history_is_bounded():
    with bounded_event_storage(5) as storage:
        for number in range(HISTORY + 100):
            storage.put_scalar("loss", float(number))
            storage.step()
    values = storage.history("loss").values()
    assert len(values) == HISTORY
    assert values[-1] == (HISTORY + 99.0, HISTORY + 104)
    assert storage.history("loss").global_avg() == (HISTORY + 99) / 2
    assert storage.latest_with_smoothing_hint(20)["loss"] == (HISTORY + 89.5, HISTORY + 104)
