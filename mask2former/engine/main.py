"""Training and evaluation from a command line: `mask2former train`, `tools/train_net.py`, or a trainer of one's own."""

import argparse
from typing import NoReturn

from mask2former.checkpoint import Checkpointer, checkpoint_config
from mask2former.engine.checks import check_setup
from mask2former.engine.command import run
from mask2former.engine.launch import launch
from mask2former.engine.setup import default_argument_parser, setup
from mask2former.engine.trainer import Trainer
from mask2former.engine.watchdog import Watch


def run_command_line(trainer: type[Trainer] = Trainer) -> NoReturn:
    """Train or evaluate as the command line says, and exit; errors of the user's end in one line."""
    args = default_argument_parser().parse_args()
    run(lambda: launch_main(args, trainer))


def launch_main(args: argparse.Namespace, trainer: type[Trainer] = Trainer) -> None:
    """Run `main` in as many processes as `args` says."""
    launch(main, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(args, trainer))


def main(args: argparse.Namespace, trainer: type[Trainer] = Trainer) -> None:
    """Train, or evaluate if `args.eval_only`; run in every process.

    Without a config file it is the config of `args.weights`, where there are such.
    """
    weights = "" if args.config_file else getattr(args, "weights", "")
    cfg = setup(args, checkpoint_config(weights) if weights else None)
    if args.eval_only:
        check_setup(cfg, eval_only=True)
        model = trainer.build_model(cfg)
        Checkpointer(model, cfg.OUTPUT_DIR).resume_or_load(
            cfg.MODEL.WEIGHTS,
            resume=args.resume,
            complete=not args.allow_missing_weights,
            strict=args.strict,
            averaged=cfg.MODEL_EMA.USE_EMA_WEIGHTS_FOR_EVAL_ONLY,
        )
        with Watch(cfg.SOLVER.WATCHDOG_SECONDS, cfg.OUTPUT_DIR):
            trainer.test(cfg, model)
            if cfg.TEST.AUG.ENABLED:
                trainer.test_with_TTA(cfg, model)
        return
    training = trainer(cfg)
    training.resume_or_load(resume=args.resume, strict=args.strict)
    training.train()
