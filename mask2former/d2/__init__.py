"""The one door to Detectron2: every module of this package takes Detectron2's names from here.

`SOURCE` is "official" where Detectron2 is installed: the names then *are* Detectron2's objects, so other
Detectron2 projects see what this library registers. Otherwise it is "bundled": compatible objects of our own.
The environment variable MASK2FORMER_D2 (auto, official or bundled) overrides the choice.
"""

import importlib
import importlib.util
import os
from collections.abc import Iterable
from typing import Any

__all__ = ["SOURCE", "objects"]

_MODULES = (
    "config",
    "data.transforms",
    "evaluation",
    "layers",
    "modeling",
    "projects.deeplab",  # registers a backbone under a name that this library would take otherwise
    "structures",
    "utils.events",
)


def _is_installed() -> bool:
    """Whether a real package is found; a mere folder of that name, as a clone makes, is not."""
    spec = importlib.util.find_spec("detectron2")
    return spec is not None and spec.origin is not None


def _choose_source(wanted: str, installed: bool) -> str:
    if wanted not in ("auto", "official", "bundled"):
        raise ImportError(f"MASK2FORMER_D2={wanted!r} is unknown: use auto, official or bundled.")
    if wanted == "official" and not installed:
        raise ImportError(
            "MASK2FORMER_D2=official, but Detectron2 is not installed. Install it with `pip install "
            "'git+https://github.com/facebookresearch/detectron2'`, or set MASK2FORMER_D2=bundled."
        )
    return "official" if installed and wanted != "bundled" else "bundled"


def _import_official() -> None:
    """Import what the door re-exports: a broken Detectron2 is an error that names the cause and a way out."""
    for name in _MODULES:
        try:
            importlib.import_module(f"detectron2.{name}")
        except Exception as error:
            raise ImportError(
                f"Detectron2 is installed, but `import detectron2.{name}` fails: {type(error).__name__}: "
                f"{error}. Repair it, or set MASK2FORMER_D2=bundled to do without it."
            ) from error


SOURCE: str = _choose_source(os.environ.get("MASK2FORMER_D2", "auto"), _is_installed())
if SOURCE == "official":
    _import_official()


def objects(names: Iterable[str], *, bundled: Iterable[str], official: str) -> dict[str, Any]:
    """The objects of these names from the source in use.

    Args:
        bundled: modules of `mask2former.d2.bundled` that hold or import them.
        official: the module of Detectron2 that does.
    """
    sources = [f"detectron2.{official}"] if SOURCE == "official" else [f"{__name__}.bundled.{name}" for name in bundled]
    found: dict[str, Any] = {}
    for source in sources:
        found |= vars(importlib.import_module(source))
    return {name: found[name] for name in names}
