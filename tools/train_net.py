"""Train or evaluate the model of a config file.

Examples:
    python tools/train_net.py --config-file configs/quickstart/panoptic.yaml
    python tools/train_net.py --config-file FILE --num-gpus 8 SOLVER.IMS_PER_BATCH 16 OUTPUT_DIR output/run1
    python tools/train_net.py --config-file FILE --import my_data DATASETS.TRAIN '("my_train",)'
    python tools/train_net.py --config-file FILE --eval-only MODEL.WEIGHTS output/run1/model_final.pth
    torchrun --nproc-per-node 2 tools/train_net.py --config-file FILE
"""

import argparse

from mask2former import get_cfg
from mask2former.checkpoint import Checkpointer
from mask2former.engine.checks import check_setup
from mask2former.engine.command import run
from mask2former.engine.launch import launch
from mask2former.engine.setup import default_argument_parser, setup
from mask2former.engine.trainer import Trainer


def main(args: argparse.Namespace) -> None:
    """Run in every process."""
    cfg = setup(args, get_cfg())
    if args.eval_only:
        check_setup(cfg, eval_only=True)
        model = Trainer.build_model(cfg)
        Checkpointer(model, cfg.OUTPUT_DIR).resume_or_load(
            cfg.MODEL.WEIGHTS, resume=args.resume, complete=not args.allow_missing_weights, strict=args.strict
        )
        Trainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            Trainer.test_with_TTA(cfg, model)
        return
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume, strict=args.strict)
    trainer.train()


if __name__ == "__main__":
    arguments = default_argument_parser().parse_args()
    machines = (arguments.num_gpus, arguments.num_machines, arguments.machine_rank, arguments.dist_url)
    run(lambda: launch(main, *machines, args=(arguments,)))
