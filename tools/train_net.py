"""Train or evaluate the model of a config file.

Examples:
    python tools/train_net.py --config-file configs/quickstart/panoptic.yaml
    python tools/train_net.py --config-file FILE --num-gpus 8 SOLVER.IMS_PER_BATCH 16 OUTPUT_DIR output/run1
    python tools/train_net.py --config-file FILE --import my_data DATASETS.TRAIN '("my_train",)'
    python tools/train_net.py --config-file FILE --eval-only MODEL.WEIGHTS output/run1/model_final.pth
    torchrun --nproc-per-node 2 tools/train_net.py --config-file FILE
"""

from mask2former.engine.main import main, run_command_line

__all__ = ["main"]

if __name__ == "__main__":
    run_command_line()
