"""The console script as a shell sees it: help that is quick, statuses, and the commands that it finds."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import mask2former_cli
from mask2former.cli.commands import COMMANDS, main

ROOT = Path(__file__).parents[2]
LOADED = "import json, sys, atexit; atexit.register(lambda: sys.stderr.write(json.dumps(sorted(sys.modules))))"


def start(*words: str, code: str = "", folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run `mask2former WORDS` in a process of its own, after some code."""
    program = f"{code}\nimport sys, mask2former_cli\nsys.exit(mask2former_cli.main())"
    return subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_imports_no_library(words: list[str]) -> None:
    done = start(*words, code=LOADED)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: mask2former {words[0]}" if len(words) > 1 else "usage: mask2former [-h]")
    loaded = {name.partition(".")[0] for name in json.loads(done.stderr)}
    assert "mask2former_cli" in loaded
    assert loaded & {"mask2former", "torch", "numpy", "cv2", "yaml", "tqdm"} == set()


def test_the_list_of_models_imports_no_library() -> None:
    done = start("zoo", "--task", "panoptic", code=LOADED)
    assert done.returncode == 0
    assert done.stdout.endswith(" models\n")
    loaded = {name.partition(".")[0] for name in json.loads(done.stderr)}
    assert loaded & {"mask2former", "torch", "numpy", "cv2", "yaml", "tqdm"} == set()
    done = start("zoo", "--backbone", "vgg")
    assert (done.returncode, done.stderr.startswith("error: no published model is like that")) == (1, True)
    assert start("zoo", "--download").returncode == 2


def test_help_lists_every_command_and_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    files = {path.stem for path in (ROOT / "mask2former" / "cli").glob("*.py")}
    assert set(COMMANDS) == files - {"__init__", "arguments", "commands"}
    for name in COMMANDS:
        assert re.search(rf"\n    {name}\s", text)
    for status in (0, 1, 2, 130, 143):
        assert f"\n  {status} " in text


@pytest.mark.parametrize("words", [[], ["trian"], ["train", "--no-such-option"], ["check"]], ids=" ".join)
def test_wrong_arguments_end_with_2_before_the_library_is_imported(words: list[str]) -> None:
    done = start(*words, code="import sys; sys.modules['torch'] = None")
    assert done.returncode == 2
    assert done.stderr.startswith("usage: mask2former")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"mask2former {version('mask2former')}\n"


def test_an_error_of_the_users_ends_with_1_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = start("train", "--config-file", "nowhere.yaml", "--output", str(tmp_path / "out"), folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: Config file 'nowhere.yaml' does not exist, and no config is named 'nowhere'.\n"
    with pytest.raises(SystemExit, match="2"):
        main(["check", "no_such_set"])
    said = capsys.readouterr().err
    assert "usage: mask2former check" in said
    assert "no data set is registered as 'no_such_set'" in said


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_ends_with_130(tmp_path: Path) -> None:
    # A job in the background of a script ignores the signal, and so would its children.
    heeds = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    (tmp_path / "stop.py").write_text(f"import os, signal; {heeds}; os.kill(os.getpid(), signal.SIGINT)\n")
    done = start("check", "shapes_val", "--import", "stop", folder=tmp_path)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_python_m_is_the_same_command() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mask2former", "zoo", "--help"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout == start("zoo", "--help").stdout
    assert done.stdout.startswith("usage: mask2former zoo")


def test_the_entry_point_starts_the_same(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["mask2former", "train", "--help"])
    with pytest.raises(SystemExit, match="0"):
        main()
    ours = capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        mask2former_cli.main()
    assert capsys.readouterr().out == ours
