"""`mask2former zoo`."""

from pathlib import Path

import pytest

from mask2former.checkpoint.published import published_models
from mask2former.cli.commands import main

R50 = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep"


def run(*words: str, status: int = 0) -> None:
    with pytest.raises(SystemExit) as end:
        main(["zoo", *words])
    assert (end.value.code or 0) == status


def listed(text: str) -> list[str]:
    return [name for name in published_models() if f"\n{name} " in text]


def test_lists_all_models(capsys: pytest.CaptureFixture[str]) -> None:
    run()
    text = capsys.readouterr().out
    assert len(listed(text)) == 47
    assert text.endswith("\n47 models\n")
    assert "PQ 51.9, AP 41.7, mIoU 61.7" in text


@pytest.mark.parametrize("words", [["--task", "instance"], ["--dataset", "ade"], ["--backbone", "SWIN-T"]])
def test_lists_those_asked_for(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run(*words)
    field = words[0].removeprefix("--")
    expected = [name for name, row in published_models().items() if words[1].lower() in getattr(row, field).lower()]
    assert 0 < len(expected) < 47
    assert listed(capsys.readouterr().out) == expected


def test_shows_one(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    run(f"zoo://{R50}")
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["name"] == R50
    assert lines["weights"] == published_models()[R50].checkpoint
    assert Path(lines["config"]).is_file()
    assert lines["downloaded"] == "no"
    assert lines["queries"] == "100"


def test_download_says_where_the_file_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    path = published_models()[R50].checkpoint.removeprefix("https://dl.fbaipublicfiles.com/")
    file = tmp_path / path  # as if it had been downloaded
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    run(R50, "--download")
    assert f"file        {file}\n" in capsys.readouterr().out


def test_errors(capsys: pytest.CaptureFixture[str]) -> None:
    run("coco/panoptic-segmentation/maskformer2_R50", status=1)
    assert "no published model is named" in capsys.readouterr().err
    run("--backbone", "vgg", status=1)
    run("--download", status=2)
