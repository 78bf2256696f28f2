"""Makes the annotations of `mapillary_vistas_instance_{train,val}`: mapillary_vistas_instance_{train,val}.json.

    python datasets/prepare_mapillary_instance.py

Needs Mapillary Vistas v1.2. The panoptic sets are scored on AP against them as well.

Files that are there already stay, so an interrupted run goes on where it stopped.
"""

from mask2former.data.prepare.command import run
from mask2former.data.prepare.mapillary_vistas import prepare_instance

if __name__ == "__main__":
    run(prepare_instance, __doc__, folder="mapillary_vistas")
