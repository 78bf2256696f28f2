"""Makes images and label maps of `ade20k_full_sem_seg_{train,val}`: images_detectron2/, annotations_detectron2/.

    python datasets/prepare_ade20k_full_sem_seg.py

Needs the full release of 2021-01-17, unpacked. 847 classes in 16 bits, 65535 ignored; images of a short side above
512 pixels are reduced to that.

Files that are there already stay, so an interrupted run goes on where it stopped.
"""

from mask2former.data.prepare.ade20k import prepare_full
from mask2former.data.prepare.command import run

if __name__ == "__main__":
    run(prepare_full, __doc__, folder="ADE20K_2021_17_01")
