"""Makes the annotations of `ade20k_instance_{train,val}`: ade20k_instance_{train,val}.json.

    python datasets/prepare_ade20k_instance.py

Needs ADEChallengeData2016.zip, and annotations_instance.tar unpacked into the folder that it makes.

Files that are there already stay, so an interrupted run goes on where it stopped.
"""

from mask2former.data.prepare.ade20k import prepare_instance
from mask2former.data.prepare.command import run

if __name__ == "__main__":
    run(prepare_instance, __doc__, folder="ADEChallengeData2016")
