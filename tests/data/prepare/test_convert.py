import json
import logging
import os
from pathlib import Path

import pytest

from mask2former.data.images import DataError
from mask2former.data.prepare.convert import check_count, convert_files, convert_to_json, list_sources


def shout(path: Path) -> bytes:
    if path.name == "bad.txt":
        raise DataError(f"{path}: bad")
    return path.read_bytes().upper()


def describe(path: Path) -> bytes:
    annotations = [{"image_id": path.stem, "segmentation": []}] * len(path.read_text())
    return json.dumps({"image": {"id": path.stem}, "annotations": annotations}).encode()


def make_sources(folder: Path, *names: str) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(name[0])
    return [folder / name for name in names]


@pytest.mark.parametrize("workers", [1, 2])
def test_all_files_are_converted(tmp_path: Path, workers: int) -> None:
    jobs = [(path, tmp_path / "out" / path.name) for path in make_sources(tmp_path / "in", "a.txt", "b.txt", "c.txt")]
    convert_files(shout, jobs, title="t", workers=workers)
    assert [target.read_text() for _, target in jobs] == ["A", "B", "C"]
    assert sorted(os.listdir(tmp_path / "out")) == ["a.txt", "b.txt", "c.txt"]


def test_what_is_there_stays_unless_overwritten(tmp_path: Path) -> None:
    sources = make_sources(tmp_path / "in", "a.txt", "b.txt")
    jobs = [(path, tmp_path / path.name) for path in sources]
    jobs[0][1].write_text("kept")
    convert_files(shout, jobs, title="t")
    assert [target.read_text() for _, target in jobs] == ["kept", "B"]
    convert_files(shout, jobs, title="t", overwrite=True)
    assert [target.read_text() for _, target in jobs] == ["A", "B"]


@pytest.mark.parametrize("workers", [1, 2])
def test_all_bad_files_are_named_and_the_others_done(tmp_path: Path, workers: int) -> None:
    sources = make_sources(tmp_path / "in", "bad.txt", "b.txt")
    jobs = [(path, tmp_path / "out" / path.name) for path in [*sources, tmp_path / "gone.txt"]]
    with pytest.raises(DataError, match=r"t: 2 of 3 files failed:\n  .*bad\.txt: bad\n  .*gone\.txt"):
        convert_files(shout, jobs, title="t", workers=workers)
    assert os.listdir(tmp_path / "out") == ["b.txt"]


def test_an_interrupted_json_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [(path, path.stem) for path in make_sources(tmp_path / "in", "a.txt", "b.txt", "c.txt")]
    target = tmp_path / "all.json"
    done: list[str] = []

    def make(path: Path) -> bytes:
        if path.stem == "b" and done == ["a"]:
            raise KeyboardInterrupt
        done.append(path.stem)
        return describe(path)

    arguments = {"categories": [{"id": 1}], "title": "t"}
    with pytest.raises(KeyboardInterrupt):
        convert_to_json(make, sources, target, **arguments)
    assert not target.exists()
    done.append("again")
    convert_to_json(make, sources, target, **arguments)
    assert done == ["a", "again", "b", "c"]
    assert sorted(os.listdir(tmp_path)) == ["all.json", "in"]
    content = json.loads(target.read_text())
    assert [image["id"] for image in content["images"]] == ["a", "b", "c"]
    assert [annotation["id"] for annotation in content["annotations"]] == [1, 2, 3]
    assert content["categories"] == [{"id": 1}]


def test_json_is_made_again_when_images_were_added(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    sources = [(path, path.stem) for path in make_sources(tmp_path / "in", "a.txt", "b.txt")]
    target = tmp_path / "all.json"
    convert_to_json(describe, sources[:1], target, categories=[], title="t")
    convert_to_json(describe, sources[:1], target, categories=[], title="t")
    assert "all.json is there already" in caplog.text
    convert_to_json(describe, sources, target, categories=[], title="t")
    assert len(json.loads(target.read_text())["images"]) == 2
    target.write_text("{")
    convert_to_json(describe, sources, target, categories=[], title="t")
    assert len(json.loads(target.read_text())["images"]) == 2


def test_counts(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    check_count(5, 5, "whole")
    check_count(4, 5, "part")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "whole: complete, 5 images"),
        ("WARNING", "part: 4 images, the complete set has 5"),
    ]


def test_sources_must_be_there(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(FileNotFoundError, match=rf"no files \*\.png in {folder}; unpack it"):
            list_sources(folder, (".png",), "unpack it")
