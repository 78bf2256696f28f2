"""Makes all that the Cityscapes sets need: label maps of train ids, panoptic annotations, COCO instances, in gtFine/.

    pip install "mask2former[cityscapes]"
    python datasets/prepare_cityscapes.py

Needs leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, unpacked, and the package cityscapesscripts.

Files that are there already stay, so an interrupted run goes on where it stopped.
"""

from mask2former.data.prepare.cityscapes import prepare
from mask2former.data.prepare.command import run

if __name__ == "__main__":
    run(prepare, __doc__, folder="cityscapes")
