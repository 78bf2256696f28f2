from pathlib import Path

import pytest

from mask2former.engine.model_choice import check_weights, choose_model, short_names

R50 = "coco/instance-segmentation/maskformer2_R50_bs16_50ep"


@pytest.mark.parametrize("task", ["instance", "panoptic", "semantic"])
def test_short_names(task: str) -> None:
    names = short_names(task)
    assert list(names) == ["r50", "r101", "swin_t", "swin_s", "swin_b", "swin_b_in21k", "swin_l_in21k"]
    assert all(f"{task}-segmentation" in name for name in names.values())


@pytest.mark.parametrize("name", ["r50", "R50", R50, f"{R50}.yaml", f"configs/{R50}.yaml"])
def test_published_models_start_from_their_checkpoint(name: str) -> None:
    choice = choose_model("instance", name, on_gpu=True)
    assert choice.config_file.as_posix().endswith(f"configs/{R50}.yaml")
    assert choice.weights == f"zoo://{R50}"


def test_without_a_name() -> None:
    assert choose_model("semantic", on_gpu=False).config_file.stem == "maskformer2_swin_tiny_bs16_160k"
    assert (
        choose_model("semantic", from_scratch=True, on_gpu=True).config_file.stem == "maskformer2_swin_tiny_bs16_160k"
    )
    small = choose_model("semantic", from_scratch=True, on_gpu=False)
    assert (small.config_file.stem, small.weights) == ("small", "")
    assert "random" in small.reason


def test_weights_that_are_named() -> None:
    choice = choose_model("instance", "r50", weights="model.pth", on_gpu=False)
    assert (choice.weights, choice.origin) == ("model.pth", "as --weights asks")
    with pytest.raises(ValueError, match="contradict"):
        choose_model("instance", weights="model.pth", from_scratch=True, on_gpu=False)


def test_a_config_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("MODEL:\n  WEIGHTS: mine.pth\n", encoding="utf-8")
    assert choose_model("instance", str(file), on_gpu=False)[::2] == (file, "mine.pth")
    file.write_text("MODEL:\n  MASK_ON: True\n", encoding="utf-8")
    choice = choose_model("instance", str(file), on_gpu=False)
    assert choice.weights == ""
    assert choice.origin.startswith("RANDOM")


def test_unknown_model() -> None:
    with pytest.raises(ValueError, match=r"--model swin_tt .*did you mean swin_t"):
        choose_model("instance", "swin_tt", on_gpu=False)


def test_weights_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pth.*--weights FILE.*--from-scratch"):
        check_weights(str(tmp_path / "none.pth"))
