"""Makes the label maps of `coco_2017_{train,val}_panoptic_with_sem_seg`: panoptic_semseg_{train,val}2017/.

    python datasets/prepare_coco_sem_seg.py

Needs the panoptic annotations of COCO 2017. 133 contiguous classes, 255 ignored.

Files that are there already stay, so an interrupted run goes on where it stopped.
"""

from mask2former.data.prepare.coco import prepare_semantic
from mask2former.data.prepare.command import run

if __name__ == "__main__":
    run(prepare_semantic, __doc__, folder="coco")
