"""The one door to Detectron2: every module of this package takes Detectron2's names from here.

`SOURCE` is "official" where Detectron2 is installed: the names then *are* Detectron2's objects, so other
Detectron2 projects see what this library registers. Otherwise it is "bundled": compatible objects of our own.
The environment variable MASK2FORMER_D2 (auto, official or bundled) overrides the choice.
"""

import importlib
import importlib.util
import os

__all__ = ["SOURCE"]

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
