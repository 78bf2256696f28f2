"""Folders of images: going on where a run ended, whatever ended it, and sharing images among processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask2former.d2 import comm
from mask2former.predict.files import find_images
from mask2former.predict.journal import Journal
from mask2former.predict.predictor import Predictor
from mask2former.predict.run import Outcome, predict_files
from mask2former.tiling import Tiles
from tests.helpers.predicting import predictor

ROOT = Path(__file__).parents[2]


def write_image(path: Path, left: int) -> None:
    picture = np.zeros((40, 60, 3), dtype=np.uint8)
    picture[:, left:] = 200
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven images, each with something of another size."""
    for number in range(7):
        write_image(tmp_path / "images" / f"{number}.png", 10 + 6 * number)
    return tmp_path


def run(folder: Path, output: str, made: Predictor | None = None, **options: Any) -> tuple[Outcome, int]:
    """The outcome, and the number of images that the model was given."""
    made = made or predictor()
    images = options.pop("images", [str(folder / "images")])
    options = {"pictures": False, **options}
    outcome = predict_files(made, find_images(images), folder / output, **options)
    return outcome, len(made.model.received)


def result(folder: Path, output: str, task: str = "instances") -> dict[str, Any]:
    return json.loads((folder / output / f"{task}.json").read_text())


def test_a_second_call_goes_on_with_what_is_new(folder: Path) -> None:
    (folder / "images" / "3.png").rename(folder / "later.png")
    assert run(folder, "out")[1] == 6
    outcome, given = run(folder, "out")
    assert (outcome.predicted, outcome.before, given) == (6, 6, 0)
    (folder / "later.png").rename(folder / "images" / "3.png")
    outcome, given = run(folder, "out")
    assert (outcome.predicted, outcome.before, given) == (7, 6, 1)
    run(folder, "at_once")
    assert result(folder, "out") == result(folder, "at_once")
    assert [a["id"] for a in result(folder, "out")["annotations"]] == list(range(1, 15))


def test_what_has_changed_or_is_missing_is_done_again(folder: Path) -> None:
    run(folder, "out")
    assert run(folder, "out", pictures=True)[1] == 7  # pictures were not written
    write_image(folder / "images" / "2.png", 50)
    (folder / "out" / "5.png").unlink()
    assert run(folder, "out", pictures=True)[1] == 2
    content = result(folder, "out")
    assert [Path(image["file_name"]).name for image in content["images"]] == [f"{n}.png" for n in range(7)]
    assert [a["bbox"][0] for a in content["annotations"] if a["image_id"] == 3] == [50, 50]
    run(folder, "out2", predictor("panoptic"))
    (folder / "out2" / "panoptic" / "4.png").unlink()
    assert run(folder, "out2", predictor("panoptic"))[1] == 1


def test_names_stay_where_further_images_come_first(folder: Path) -> None:
    write_image(folder / "a" / "0.png", 30)
    run(folder, "out", images=[str(folder / "images" / "0.png")])
    run(folder, "out", images=[str(folder / "a"), str(folder / "images")])
    names = {Path(entry).parent.name: found.name for entry, found in Journal(folder / "out").entries().items()}
    assert names["a"] == "0_2"
    assert len(result(folder, "out")["images"]) == 8
    run(folder, "out", images=[str(folder / "a")])
    assert len(result(folder, "out")["images"]) == 8


def test_other_settings_do_not_mix(folder: Path) -> None:
    run(folder, "out")
    with pytest.raises(ValueError, match=r"made with other settings \(config, threshold\).*--overwrite"):
        run(folder, "out", predictor(threshold=0.8))
    made = predictor()
    made.tiles = Tiles(32)
    with pytest.raises(ValueError, match=r"other settings \(tiles\)"):
        run(folder, "out", made)
    outcome, given = run(folder, "out", predictor(threshold=0.8), overwrite=True)
    assert (outcome.before, given) == (0, 7)
    assert len(result(folder, "out")["annotations"]) == 7


def test_a_line_that_a_kill_cut_off_is_done_again(folder: Path) -> None:
    run(folder, "whole")
    lines = (folder / "whole" / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    for length in (len(lines[3]) - 1, 5, 0):
        output = folder / f"cut{length}"
        output.mkdir()
        (output / "predictions.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:length])
        assert run(folder, output.name)[1] == 5
        assert result(folder, output.name) == result(folder, "whole")
    (folder / "head").mkdir()
    (folder / "head" / "predictions.jsonl").write_bytes(lines[0][:9])
    assert run(folder, "head")[1] == 7
    assert result(folder, "head") == result(folder, "whole")


def test_batches_write_the_same(folder: Path) -> None:
    (folder / "images" / "4.png").write_bytes(b"no image")
    outcome, _ = run(folder, "batched", batch_size=3)
    assert [Path(name).name for name in outcome.skipped] == ["4.png"]
    run(folder, "single")
    assert result(folder, "batched") == result(folder, "single")


def start(folder: Path, *launcher: str, fatal: str) -> subprocess.CompletedProcess[str]:
    script = ["tests/helpers/predicting.py", str(folder / "images"), str(folder / "shared"), fatal]
    return subprocess.run(
        [sys.executable, *launcher, *script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_processes_share_and_a_kill_loses_and_doubles_nothing(folder: Path) -> None:
    assert start(folder, fatal="2.png").returncode == -signal.SIGKILL
    assert not (folder / "shared" / "instances.json").exists()
    assert [Path(name).name for name in Journal(folder / "shared").entries()] == ["0.png", "1.png"]
    shared = start(folder, *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"), fatal="")
    assert shared.returncode == 0, shared.stderr
    lines = [json.loads(line) for path in (folder / "shared").glob("*.jsonl") for line in path.open()]
    assert sorted(Path(line["file_name"]).name for line in lines if "file_name" in line) == [
        f"{number}.png" for number in range(7)
    ]
    assert len(list((folder / "shared").glob("*.jsonl"))) == 2
    run(folder, "alone")
    assert result(folder, "shared") == result(folder, "alone")


def test_each_process_takes_its_share(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    monkeypatch.setattr(comm, "get_rank", lambda: 1)
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    monkeypatch.setattr(comm, "synchronize", lambda: None)
    monkeypatch.setattr(comm, "all_gather", lambda data: [data])
    assert run(folder, "out")[1] == 2
    assert sorted(Path(name).name for name in Journal(folder / "out").entries()) == ["1.png", "4.png"]
    assert not (folder / "out" / "instances.json").exists()
