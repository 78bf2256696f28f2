"""Makes the label maps of `ade20k_sem_seg_{train,val}`: annotations_detectron2/ (classes 0..149, 255 ignored).

    python datasets/prepare_ade20k_sem_seg.py

Needs ADEChallengeData2016.zip, unpacked.

Files that are there already stay, so an interrupted run goes on where it stopped.
"""

from mask2former.data.prepare.ade20k import prepare_semantic
from mask2former.data.prepare.command import run

if __name__ == "__main__":
    run(prepare_semantic, __doc__, folder="ADEChallengeData2016")
