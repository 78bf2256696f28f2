"""From the command line to a frozen config, an output folder and a log."""

import argparse
import logging
import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from fvcore.common.config import BASE_KEY

from mask2former import d2
from mask2former.checkpoint.configs import find_config_file
from mask2former.cli.arguments import add_training_arguments, described_parser
from mask2former.config import get_cfg
from mask2former.d2 import comm
from mask2former.d2.config import CfgNode
from mask2former.d2.config_file import merge_config_file, merge_key_values
from mask2former.d2.data import DatasetCatalog
from mask2former.data.datasets.metadata import categories_of, dataset_metadata
from mask2former.data.layouts import register_descriptions
from mask2former.engine.agreement import failing_together
from mask2former.engine.checks import check_output_dir
from mask2former.engine.command import HANDLER, import_modules
from mask2former.files import remove_leftovers, write_text

logger = logging.getLogger(__name__)

LOG_FORMAT = "[%(asctime)s %(name)s] %(levelname)s: %(message)s"


def default_argument_parser() -> argparse.ArgumentParser:
    """Parser of the arguments that Detectron2's training tools take."""
    epilog = "Several CPU processes, or a cluster: torchrun --nproc-per-node N tools/train_net.py ..."
    parser = described_parser(None, epilog=epilog)
    add_training_arguments(parser)
    return parser


def setup(args: argparse.Namespace, cfg: CfgNode | None = None) -> CfgNode:
    """Import what `--import` names, read the config, register DATASETS.DESCRIPTIONS, start logging.

    OUTPUT_DIR is made, with `config.yaml` in it.

    It is called in every process.

    Args:
        args: of `default_argument_parser`.
        cfg: all keys at their defaults; None: those of `mask2former.get_cfg`.

    Returns:
        The frozen config.

    Raises:
        FileNotFoundError, KeyError, ValueError: the config file or an option is wrong; the text names it.
        ModuleNotFoundError: there is no module of a name that `--import` gives.
    """
    import_modules(getattr(args, "modules", ()))
    cfg = load_cfg(cfg or get_cfg(), args.config_file, args.opts)
    register_descriptions(cfg.DATASETS.DESCRIPTIONS, beside=Path(args.config_file).parent)
    output_dir = Path(cfg.OUTPUT_DIR)
    make_output_dir(cfg)
    setup_logging(output_dir, rank=comm.get_rank())
    logger.info("Arguments: %s", vars(args))
    logger.info("Environment: %s", describe_environment())
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK and not args.eval_only
    if comm.is_main_process():
        write_config(cfg, output_dir / "config.yaml")
    return cfg


def make_output_dir(cfg: CfgNode) -> None:
    """Make OUTPUT_DIR, and clear it of temporary files that dead processes left; every process calls it.

    Raises:
        SetupError: it cannot be made or written.
    """
    with failing_together():
        check_output_dir(cfg)
        remove_leftovers(cfg.OUTPUT_DIR)


def load_cfg(cfg: CfgNode, config_file: str = "", opts: Sequence[str] = ()) -> CfgNode:
    """A copy of `cfg`, overridden by a file ("" for none) and by `KEY, VALUE, ...`; frozen, for this machine.

    Args:
        config_file: a path, or the name of a config in the model zoo.

    Raises:
        FileNotFoundError, KeyError, ValueError: see `merge_config_file` and `merge_key_values`.
    """
    cfg = cfg.clone()
    if config_file:
        merge_config_file(cfg, find_config_file(config_file))
    # Detectron2's tools accept a leading "--" before the pairs
    merge_key_values(cfg, opts[1:] if opts and opts[0] == "--" else opts)
    return use_available_device(cfg)


def use_available_device(cfg: CfgNode) -> CfgNode:
    """A frozen copy of `cfg` whose MODEL.DEVICE exists: "cpu" where it says "cuda" and there is none."""
    cfg = cfg.clone()
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.info("No GPU is usable: MODEL.DEVICE %s becomes cpu", cfg.MODEL.DEVICE)
        cfg.defrost()
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def with_categories(cfg: CfgNode) -> CfgNode:
    """A frozen copy of `cfg` whose MODEL.CATEGORIES are the classes of DATASETS.TRAIN, as far as these are known."""
    cfg = cfg.clone()
    cfg.defrost()
    for name in cfg.DATASETS.TRAIN[:1]:
        if name in DatasetCatalog.list():
            cfg.MODEL.CATEGORIES = categories_of(dataset_metadata(name))
    cfg.freeze()
    return cfg


def setup_logging(output_dir: Path, *, rank: int = 0) -> None:
    """Send messages (INFO and above) to `output_dir/log.txt` and, from the main process, to standard output.

    Tracebacks are in the file alone. Other processes write `log.txt.rank<r>`. Calling it again replaces what an
    earlier call set up.
    """
    root = logging.getLogger()
    for handler in list(root.handlers):
        if handler.get_name() == HANDLER:
            root.removeHandler(handler)
            handler.close()
    file = output_dir / ("log.txt" if rank == 0 else f"log.txt.rank{rank}")
    handlers: list[logging.Handler] = [logging.FileHandler(file, encoding="utf-8")]
    if rank == 0:
        handlers.append(logging.StreamHandler(sys.stdout))
    for handler, formatter in zip(handlers, (logging.Formatter, _WithoutTraceback), strict=False):
        handler.set_name(HANDLER)
        handler.setFormatter(formatter(LOG_FORMAT, datefmt="%m/%d %H:%M:%S"))
        root.addHandler(handler)
    root.setLevel(logging.INFO)


class _WithoutTraceback(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        bare = logging.makeLogRecord({**record.__dict__, "exc_info": None, "exc_text": None, "stack_info": None})
        return super().format(bare)


def describe_environment() -> str:
    """Versions and hardware that results depend on."""
    facts = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "detectron2": d2.SOURCE,
        "processes": comm.get_world_size(),
        "cpu threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def write_config(cfg: CfgNode, path: Path) -> None:
    """Write a complete config as YAML that `--config-file` reads.

    A file there that is based on another one was written by hand or for own data, and says why: it stays, and the
    complete config is written beside it, as `config_full.yaml`.
    """
    write_text(path.with_name(f"{path.stem}_full{path.suffix}") if _has_base(path) else path, cfg.dump())


def _has_base(path: Path) -> bool:
    return (
        path.is_file()
        and re.search(rf"^{BASE_KEY}:", path.read_text(encoding="utf-8", errors="replace"), re.M) is not None
    )
