import os
import pickle

import pytest
import torch
from torch import nn

from mask2former.checkpoint import Checkpointer, CheckpointError, read_checkpoint


def run(folder, **settings):
    """Return a checkpointer over everything that a training run has."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 3])
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    return Checkpointer(model, folder, optimizer=optimizer, scheduler=scheduler, scaler=scaler, **settings)


def step(checkpointer):
    optimizer, scheduler = checkpointer.stateful["optimizer"], checkpointer.stateful["scheduler"]
    optimizer.zero_grad()
    checkpointer.model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    scheduler.step()


def test_training_continues_exactly(tmp_path):
    first = run(tmp_path)
    step(first)
    path = first.save("model_0000000", iteration=0, seed=42)
    step(first)

    second = run(tmp_path)
    assert second.latest() == path
    assert second.resume_or_load("", resume=True) == {"iteration": 0, "seed": 42}
    step(second)
    torch.testing.assert_close(second.model.state_dict(), first.model.state_dict(), rtol=0, atol=0)
    assert second.stateful["scheduler"].get_last_lr() == first.stateful["scheduler"].get_last_lr()


def test_files_hold_nothing_but_data_and_leave_no_litter(tmp_path):
    path = run(tmp_path / "new" / "folder").save("model_final", iteration=9, seed=1)
    content = torch.load(path, weights_only=True)
    assert content.keys() == {"model", "optimizer", "scheduler", "scaler", "checkpoints", "iteration", "seed"}
    assert read_checkpoint(path)["model"].keys() == {"weight", "bias"}
    assert sorted(os.listdir(path.parent)) == ["last_checkpoint", "model_final.pth"]
    assert (path.parent / "last_checkpoint").read_text() == "model_final.pth"


def test_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    checkpointer = run(tmp_path)
    path = checkpointer.save("model_final", iteration=1)

    def fail(content, path):
        path.write_bytes(b"half a checkpoint")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpointer.save("model_final", iteration=2)
    assert checkpointer.load(path)["iteration"] == 1
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_final.pth"]


@pytest.mark.parametrize(("keep", "left"), [(None, [0, 1, 2, 3]), (2, [2, 3])])
def test_old_checkpoints_go_only_if_asked(tmp_path, keep, left):
    checkpointer = run(tmp_path, keep=keep)
    checkpointer.save("model_best")
    for i in range(4):
        checkpointer.save(f"model_{i:07d}")
    files = {"last_checkpoint", "model_best.pth", *(f"model_{i:07d}.pth" for i in left)}
    assert set(os.listdir(tmp_path)) == files


def test_only_checkpoints_of_the_run_itself_are_deleted(tmp_path):
    """Not those of another run, whose numbers may be lower or higher; a resumed run goes on where it was."""
    foreign = {"model_0000000.pth", "model_9999999.pth", "model_best.pth", "model_0000001.pth.bak", "notes.txt"}
    for name in foreign:
        (tmp_path / name).write_text("not ours")
    checkpointer = run(tmp_path, keep=2)
    for i in (1, 2, 3):
        checkpointer.save(f"model_{i:07d}")
    assert set(os.listdir(tmp_path)) == foreign | {"last_checkpoint", "model_0000002.pth", "model_0000003.pth"}
    resumed = run(tmp_path, keep=2)
    resumed.resume_or_load("", resume=True)
    resumed.save("model_0000004")
    assert set(os.listdir(tmp_path)) == foreign | {"last_checkpoint", "model_0000003.pth", "model_0000004.pth"}
    resumed.save("model_0000003")  # once more: now it is the newest
    resumed.save("model_0000005")
    assert set(os.listdir(tmp_path)) == foreign | {"last_checkpoint", "model_0000003.pth", "model_0000005.pth"}


def test_a_checkpoint_that_cannot_be_written_costs_none(tmp_path, monkeypatch):
    checkpointer = run(tmp_path, keep=1)
    checkpointer.save("model_0000001")

    def fail(*args):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fail)
        with pytest.raises(OSError, match="No space"):
            checkpointer.save("model_0000002")
    assert (tmp_path / "model_0000001.pth").is_file()
    checkpointer.save("model_0000003")
    assert set(os.listdir(tmp_path)) == {"last_checkpoint", "model_0000003.pth"}


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="keep is 0"):
        run(tmp_path, keep=0)


def test_nothing_to_resume_from_loads_the_weights(tmp_path):
    source, target = run(tmp_path / "a"), run(tmp_path / "b")
    weights = source.save("model_final", iteration=7)
    assert target.latest() is None
    assert target.resume_or_load(weights, resume=True) == {}
    assert torch.equal(target.model.weight, source.model.weight)


def test_without_resume_the_folder_is_not_looked_at(tmp_path):
    checkpointer = run(tmp_path)
    checkpointer.save("model_final", iteration=7)
    nn.init.zeros_(checkpointer.model.weight)
    assert checkpointer.resume_or_load("", resume=False) == {}
    assert not checkpointer.model.weight.any()


def test_only_the_main_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("mask2former.checkpoint.checkpointer.comm.is_main_process", lambda: False)
    run(tmp_path).save("model_final")
    assert not os.listdir(tmp_path)


def test_latest_is_gone(tmp_path):
    checkpointer = run(tmp_path)
    checkpointer.save("model_final").unlink()
    with pytest.raises(CheckpointError, match=r"last_checkpoint names model_final\.pth, which is not in"):
        checkpointer.resume_or_load("", resume=True)


def test_another_configuration_is_named(tmp_path):
    path = run(tmp_path).save("model_final")
    other = Checkpointer(nn.Linear(4, 2), tmp_path)
    with pytest.raises(CheckpointError, match=r"another configuration: (.|\n)*mismatch for weight"):
        other.load(path)


def test_weights_alone_do_not_resume(tmp_path):
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": {k: v.numpy() for k, v in nn.Linear(3, 2).state_dict().items()}}))
    with pytest.raises(CheckpointError, match="has no optimizer, scheduler, scaler"):
        run(tmp_path).load(path)
