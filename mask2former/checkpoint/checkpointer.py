"""Writing training checkpoints, and continuing from them."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from mask2former.checkpoint.errors import CheckpointError
from mask2former.checkpoint.load import load_weights
from mask2former.checkpoint.reader import read_checkpoint
from mask2former.d2 import comm
from mask2former.files import free_old_name, replacing, write_text

logger = logging.getLogger(__name__)

LAST = "last_checkpoint"  # as Detectron2 names it: a file with the name of the newest checkpoint
_WRITTEN = "checkpoints"  # under which name a checkpoint has the names of those that the run wrote
_NUMBERED = re.compile(r"model_\d+\.pth")


class Stateful(Protocol):
    """What has a state worth keeping: optimiser, schedule, gradient scaler."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain data and tensors."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take up a state."""
        ...


class Checkpointer:
    """Keeps the state of a training run in a folder, as `<name>.pth` files that hold nothing but data.

    A file appears whole or not at all. All processes may call all methods; only the main one writes.

    Args:
        model: the model itself, not wrapped for distributed training.
        folder: where checkpoints go; made when first needed.
        keep: how many of the numbered checkpoints (`model_0004999.pth`) that the run wrote stay; None for all.
        stateful: what is saved and restored beside the model, under these names; None is left out.

    Attributes:
        notes: an iteration, and plain data that checkpoints of that iteration get, such as what an evaluation found.
    """

    def __init__(
        self,
        model: nn.Module,
        folder: str | os.PathLike[str],
        *,
        keep: int | None = None,
        **stateful: Stateful | None,
    ) -> None:
        if keep is not None and keep < 1:
            raise ValueError(f"keep is {keep}; at least one checkpoint has to stay")
        self.model = model
        self.folder = Path(folder)
        self.keep = keep
        self.notes: tuple[int, dict[str, Any]] | None = None
        self.stateful = {name: value for name, value in stateful.items() if value is not None}
        self._numbered: list[str] = []  # files that this run wrote, from the oldest on

    def save(self, name: str, **state: Any) -> Path:
        """Write `<folder>/<name>.pth`, make it the latest, and return its path.

        Args:
            name: name without suffix; it replaces an older file of that name.
            state: plain data or tensors to keep beside the model, such as `iteration=99`.

        Raises:
            OSError: the file cannot be written; what was there before is still there.
        """
        path = self.folder / f"{name}.pth"
        content = {"model": self.model.state_dict()}  # all processes: they may have to gather it
        content |= {key: value.state_dict() for key, value in self.stateful.items()}
        if not comm.is_main_process():
            return path
        if self.notes is not None and self.notes[0] == state.get("iteration"):
            content |= self.notes[1]
        numbered = [other for other in self._numbered if other != path.name]
        numbered += [path.name] if _NUMBERED.fullmatch(path.name) else []
        try:
            with replacing(path) as temporary:
                torch.save(content | state | {_WRITTEN: numbered}, temporary)
            write_text(self.folder / LAST, path.name)
        except (OSError, RuntimeError) as error:  # the latter is how PyTorch reports a full disk
            raise OSError(f"{path} cannot be written: {error}") from error
        self._remove_old(numbered)
        logger.info("Saved checkpoint %s", path)
        return path

    def add_notes(self, name: str) -> None:
        """Add `notes` to `<folder>/<name>.pth`, which is of the same iteration; in the main process alone.

        Raises:
            OSError: the file cannot be written; it is as it was.
        """
        path = self.folder / f"{name}.pth"
        if self.notes is None or not self.notes[1]:
            return
        content = read_checkpoint(path)
        try:
            with replacing(path) as temporary:
                torch.save(content | self.notes[1], temporary)
        except RuntimeError as error:  # how PyTorch reports a full disk
            raise OSError(f"{path} cannot be written: {error}") from error

    def latest(self) -> Path | None:
        """Return the newest checkpoint, or None if the folder has none.

        Raises:
            CheckpointError: if the folder names a file that is not there.
        """
        pointer = self.folder / LAST
        if not pointer.is_file():
            return None
        name = Path(pointer.read_text(encoding="utf-8").strip()).name
        if not (self.folder / name).is_file():
            raise CheckpointError(
                f"{pointer} names {name or 'nothing'}, which is not in {self.folder}; write the name of another "
                "checkpoint into it, or delete it to start anew"
            )
        return self.folder / name

    def start_anew(self) -> None:
        """Let no checkpoint of an earlier run in the folder count as one of this run."""
        pointer = self.folder / LAST
        if comm.is_main_process() and pointer.is_file():
            name = pointer.read_text(encoding="utf-8").strip()
            os.replace(pointer, free_old_name(pointer))
            logger.warning(
                "%s holds checkpoints of an earlier run, which this one may replace. To continue that run instead, "
                "write %r into %s and start with --resume",
                *(self.folder, name, pointer),
            )

    def load(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Restore model and everything else from a checkpoint, and return what `save` was given as `state`.

        Raises:
            CheckpointError: if the file cannot be read, was made with another configuration, or lacks a part.
        """
        content = read_checkpoint(path)
        absent = [name for name in self.stateful if name not in content]
        if absent:
            raise CheckpointError(
                f"{path} has no {', '.join(absent)}, so training cannot continue from it; "
                "use it as MODEL.WEIGHTS, without --resume, to start from its weights"
            )
        try:
            self.model.load_state_dict(content.pop("model"))
            for name, value in self.stateful.items():
                if state := content.pop(name):  # that of an idle gradient scaler is empty
                    value.load_state_dict(state)
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{path} was made with another configuration: {error}\nResume with that of its run; or start a new "
                "run from its weights, also with other classes: set MODEL.WEIGHTS to it and OUTPUT_DIR to a new "
                "folder, and leave --resume out"
            ) from error
        self._numbered = list(content.pop(_WRITTEN, []))
        logger.info("Restored checkpoint %s", path)
        return content

    def resume_or_load(
        self,
        weights: str | os.PathLike[str],
        *,
        resume: bool,
        complete: bool = False,
        strict: bool = False,
        averaged: bool = False,
        categories: Sequence[Mapping[str, Any]] = (),
    ) -> dict[str, Any]:
        """Restore the latest checkpoint of the folder if `resume` and there is one, else load `weights`.

        Args:
            weights: see `load_weights`; empty to keep the model as it is.
            resume: whether to look for a checkpoint.
            complete: let `weights` be there, and leave nothing in the model at random.
            strict: let `weights` differ in nothing from the model.
            averaged: load the average of the weights alone, from either file.
            categories: the classes of the model, see `load_weights`.

        Returns:
            What `save` was given as `state`, or {} if nothing was restored.
        """
        latest = self.latest() if resume else None
        if latest is not None and not averaged:
            return self.load(latest)
        weights = latest or weights
        if resume and latest is None:
            logger.info("No checkpoint in %s to resume from", self.folder)
        if os.fspath(weights) or complete:
            load_weights(
                self.model, weights, complete=complete, strict=strict, averaged=averaged, categories=categories
            )
        else:
            logger.info("MODEL.WEIGHTS is empty: the model starts from its random initialisation")
        return {}

    def _remove_old(self, numbered: list[str]) -> None:
        """Delete the oldest of the files that this run wrote, if they are too many."""
        surplus = 0 if self.keep is None else max(0, len(numbered) - self.keep)
        self._numbered = numbered[surplus:]
        for name in numbered[:surplus]:
            try:
                (self.folder / name).unlink(missing_ok=True)
            except OSError as error:
                logger.warning("%s stays, it cannot be deleted: %s", self.folder / name, error)
