"""Build entry point: configs and the compiled op join the package; all else is declared in pyproject.toml.

The op is compiled where PyTorch and a compiler are there, that is with `pip install --no-build-isolation`, for GPUs too
if there is one, or with `FORCE_CUDA=1`. Without them the package builds all the same, and compiles the op on first use.
`MASK2FORMER_OPS=compiled` makes a failure an error; `reference` and `triton` compile nothing.
"""

import os
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
CHOICE = os.environ.get("MASK2FORMER_OPS") or "auto"


def compile_ops(folder: Path) -> None:
    """Compile the op into `folder`."""
    # The file by itself: the package needs more than PyTorch.
    builder = SimpleNamespace(**runpy.run_path(str(ROOT / "mask2former" / "ops" / "build.py")))
    for old in folder.glob("ms_deform_attn-*.so"):
        old.unlink()
    cuda_problem = builder.cuda_problem()
    builder.build(folder / builder.library_name(cuda=not cuda_problem), cuda=not cuda_problem)


class BuildPackage(build_py):
    """A package that is built carries `configs/` as `mask2former/configs/`; an editable one reads the checkout's."""

    def run(self) -> None:
        super().run()
        package = ROOT / "mask2former" if self.editable_mode else Path(self.build_lib, "mask2former")
        if not self.editable_mode:
            shutil.rmtree(package / "configs", ignore_errors=True)
            shutil.copytree(ROOT / "configs", package / "configs")
        self.distribution.has_compiled_ops = False
        if CHOICE in ("auto", "compiled"):
            try:
                compile_ops(package / "ops")
                self.distribution.has_compiled_ops = True
            except (ImportError, OSError, RuntimeError) as error:
                if CHOICE == "compiled":
                    raise
                self.warn(f"the compiled op is left to its first use: {error}")


class BuildWheel(bdist_wheel):
    """With the compiled op, a wheel for this platform; it has nothing to do with Python's version."""

    def run(self) -> None:
        self.run_command("build")
        if self.distribution.has_compiled_ops:
            self.root_is_pure = False
            self.distribution.has_ext_modules = lambda: True  # installed where machine code belongs
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        return super().get_tag() if self.root_is_pure else ("py3", "none", super().get_tag()[2])


setup(cmdclass={"build_py": BuildPackage, "bdist_wheel": BuildWheel})
