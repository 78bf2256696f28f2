"""Makes images and label maps of `coco_2017_{train,test}_stuff_10k_sem_seg`: {images,annotations}_detectron2/.

    python datasets/prepare_coco_stuff_10k.py

Needs cocostuff-10k-v1.1.zip, unpacked. 171 contiguous classes, 255 ignored; images are hard links where possible.

Files that are there already stay, so an interrupted run goes on where it stopped.
"""

from mask2former.data.prepare.coco import prepare_stuff_10k
from mask2former.data.prepare.command import run

if __name__ == "__main__":
    run(prepare_stuff_10k, __doc__, folder="coco/coco_stuff_10k")
