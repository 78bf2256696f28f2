"""Makes what `ade20k_panoptic_{train,val}` needs: panoptic JSON files and PNGs, label maps, instances.

    python datasets/prepare_ade20k_panoptic.py

Needs ADEChallengeData2016.zip, and annotations_instance.tar unpacked into the folder that it makes. Includes what
prepare_ade20k_sem_seg.py and prepare_ade20k_instance.py do.

Files that are there already stay, so an interrupted run goes on where it stopped.
"""

from mask2former.data.prepare.ade20k import prepare_panoptic
from mask2former.data.prepare.command import run

if __name__ == "__main__":
    run(prepare_panoptic, __doc__, folder="ADEChallengeData2016")
