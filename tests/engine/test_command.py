"""What the command lines share."""

import importlib
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from mask2former.checkpoint import CheckpointError
from mask2former.engine.command import import_modules, run
from mask2former.engine.setup import default_argument_parser, setup_logging
from tests.helpers.training import restored_logging


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    "error",
    [KeyError("no key X"), FileNotFoundError("no file Y"), CheckpointError("a bad file"), ValueError("a value")],
)
def test_an_error_ends_in_one_line_and_its_traceback_in_the_log(
    error: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with restored_logging():
        setup_logging(tmp_path)
        with pytest.raises(SystemExit, match="1"):
            run(lambda: fail(error))
    output = capsys.readouterr()
    assert output.err == f"error: {error.args[0]} (traceback: {tmp_path / 'log.txt'})\n"
    assert "Traceback" not in output.out
    log = (tmp_path / "log.txt").read_text()
    assert "Traceback" in log
    assert "in fail" in log


def test_ctrl_c_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="130"):
        run(lambda: fail(KeyboardInterrupt()))
    assert capsys.readouterr().err == "interrupted\n"


def test_a_mistake_of_the_program_keeps_its_traceback() -> None:
    with pytest.raises(TypeError):
        run(lambda: fail(TypeError("a bug")))
    with pytest.raises(KeyError):
        run(lambda: fail(KeyError("area")))
    with pytest.raises(ValueError, match="in a plug-in"):  # no log, and not this library's code
        run(lambda: fail(ValueError("in a plug-in")))


def test_logged_exceptions_leave_their_traceback_to_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with restored_logging():
        setup_logging(tmp_path)
        try:
            fail(RuntimeError("deep inside"))
        except RuntimeError:
            logging.getLogger("mask2former.x").exception("Training failed")
    assert capsys.readouterr().out.rstrip().endswith("ERROR: Training failed")
    assert "deep inside" in (tmp_path / "log.txt").read_text()


def test_modules_of_the_working_folder_are_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "module_of_a_user.py").write_text("VALUE = 5\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    import_modules(["module_of_a_user.py"])
    assert sys.modules.pop("module_of_a_user").VALUE == 5
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        import_modules(["no_such_module"])


IMPORT = ["--import", "stop_here"]
ARGUMENTS = {
    "analyze_model": [*IMPORT, "--model", "quickstart/panoptic"],
    "benchmark": ["criterion", *IMPORT],
    "check_dataset": [*IMPORT, "shapes_val"],
    "convert_to_transformers": [*IMPORT, "a.yaml", "a.pth", "out"],
    "demo": [*IMPORT, "--config-file", "a.yaml", "--input", "a.jpg", "--output", "out"],
    "train_net": IMPORT,
}


@pytest.mark.parametrize("tool", ARGUMENTS)
def test_every_tool_imports_what_it_is_told(tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stop_here.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    main = importlib.import_module(f"tools.{tool}").main
    arguments: Any = ARGUMENTS[tool]
    if tool == "train_net":
        arguments = default_argument_parser().parse_args(arguments)
    with pytest.raises(SystemExit, match="imported"):
        main(arguments)
