"""Runs the code of one of the guides, in the working folder: `python guides.py PAGE`.

Blocks of a page run in order. Python blocks share one process; each `python ...` or `mask2former ...` of a bash block
has its own, forked from one that has imported the library already, as if started anew. A comment in the line before a
block says otherwise:

    <!-- file: NAME -->        the block is a file: it is written, not run
    <!-- not run: REASON -->   what cannot run in a test: it is parsed alone

Published weights and long runs are replaced: see `REPLACED` and `TINY`.
"""

import os
import re
import runpy
import shlex
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from mask2former.cli.commands import main

BLOCK = re.compile(r"(?:^ *<!-- (file|not run): (.*?) -->\n)?^( *)```(python|bash|yaml)\n(.*?)^ *```", re.M | re.S)
REPLACED = {
    r"zoo://[\w./-]+": "tiny.pth",
    r", trained=True": "",
    r"(datasets/make_shapes\.py)$": r"\1 --train 4 --val 2 --size 64 80 --workers 1",
}
"""In Python and bash: no downloads, little data."""
TINY: dict[str, Any] = {
    "WEIGHTS": "tiny.pth", "DEPTH": 18, "RES2_OUT_CHANNELS": 64, "NORM": None, "NUM_WORKERS": 0,
    "CONVS_DIM": 32, "MASK_DIM": 32, "TRANSFORMER_ENC_LAYERS": 1, "HIDDEN_DIM": 32, "DIM_FEEDFORWARD": 32,
    "DEC_LAYERS": 2, "TRAIN_NUM_POINTS": 64, "NUM_OBJECT_QUERIES": 10,
    "MAX_ITER": 2, "STEPS": [1], "IMS_PER_BATCH": 2, "EVAL_PERIOD": 0, "CHECKPOINT_PERIOD": 0,
    "IMAGE_SIZE": 64, "MIN_SIZE_TRAIN": [64], "MAX_SIZE_TRAIN": 96, "SIZE": [64, 64], "MIN_SIZE_TEST": 64,
    "MAX_SIZE_TEST": 96,
}  # fmt: skip
"""Settings of config files, wherever they give these keys; None leaves a value as it is."""


@dataclass(frozen=True)
class Block:
    """A block of code, with the number of its first line, and what the comment before it says."""

    language: str
    code: str
    line: int
    role: str
    text: str


def blocks_of(page: str) -> Iterator[Block]:
    """The Python, bash and YAML blocks of a page."""
    for match in BLOCK.finditer(page):
        role, text, indent, language, code = match.groups()
        code = re.sub(f"^{indent}", "", code, flags=re.M)
        yield Block(language, code, page[: match.start(5)].count("\n") + 1, role or "run", text or "")


def commands_of(code: str) -> Iterator[list[str]]:
    """The commands of a bash block, as words."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


def check_syntax(block: Block) -> None:
    """Raises unless the block is Python or bash."""
    if block.language == "python":
        compile(block.code, f"line {block.line}", "exec")
    elif block.language == "bash":
        subprocess.run(["bash", "-n"], input=block.code, text=True, check=True)
    else:
        yaml.safe_load(block.code)


def tiny(content: Any) -> Any:
    """The content of a YAML file with the values of `TINY`."""
    if not isinstance(content, dict):
        return content
    return {key: tiny(value) if TINY.get(key) is None or value == "" else TINY[key] for key, value in content.items()}


def write_file(block: Block, folder: Path) -> None:
    """Write a block that is a file."""
    content = yaml.safe_dump(tiny(yaml.safe_load(block.code))) if block.language == "yaml" else block.code
    (folder / block.text).write_text(content)


def replaced(code: str) -> str:
    """Code with what `REPLACED` says."""
    for pattern, text in REPLACED.items():
        code = re.sub(pattern, text, code, flags=re.M)
    return code


class Shell:
    """Runs command lines of Python, each in a process forked from this one as it was when the shell was made."""

    def __init__(self) -> None:
        (commands, self._commands), (self._results, results) = os.pipe(), os.pipe()
        if os.fork() == 0:
            os.close(self._commands)
            with os.fdopen(commands) as lines:
                for line in lines:
                    os.write(results, b"%d\n" % _in_child(partial(run_command, shlex.split(line))))
            os._exit(0)

    def run(self, words: list[str]) -> int:
        """The exit status of a command."""
        os.write(self._commands, f"{shlex.join(words)}\n".encode())
        return int(os.read(self._results, 16))


def _in_child(function: Callable[[], None]) -> int:
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    status: Any = 1
    try:
        function()
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    if isinstance(status, str):
        sys.stderr.write(f"{status}\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)


def run_command(words: list[str]) -> None:
    """`mask2former ...`, `python SCRIPT ...` or `python -c CODE` in this process."""
    program, *words = words
    if program == "mask2former":
        main(words)
    if words[0] == "-c":
        exec(words[1], {"__name__": "__main__"})
        return
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).parent))
    runpy.run_path(words[0], run_name="__main__")


def run_page(page: str) -> int:
    """Run a page's blocks; returns how many ran."""
    shell, namespace, count = Shell(), {"__name__": "guide"}, 0
    sys.path.insert(0, "")
    for block in blocks_of(page):
        check_syntax(block)
        if block.role == "file":
            write_file(block, Path())
        elif block.role == "not run" or block.language == "yaml":
            continue
        elif block.language == "python":
            exec(compile(replaced(block.code), f"Python block at line {block.line}", "exec"), namespace)
        else:
            for words in commands_of(replaced(block.code)):
                is_ours = words[0] in ("python", "mask2former")
                command = ["bash", "-c", shlex.join(words)]
                status = shell.run(words) if is_ours else subprocess.run(command).returncode
                if status:
                    sys.exit(f"line {block.line}: {shlex.join(words)} ended with {status}")
        count += 1
    return count


if __name__ == "__main__":
    import torch

    from mask2former import model_zoo
    from mask2former.checkpoint.description import describe

    torch.manual_seed(0)
    name = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep"
    model = model_zoo.get_model(name, device="cpu")
    torch.save({"model": model.state_dict(), **describe(model_zoo.get_config(name))}, "tiny.pth")
    sys.stdout.write(f"{run_page(Path(sys.argv[1]).read_text(encoding='utf-8'))} blocks run\n")
