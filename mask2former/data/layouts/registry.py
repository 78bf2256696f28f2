"""The layouts that are recognised, the more telling first."""

from mask2former.data.images import DataError
from mask2former.data.layouts.coco import CocoInstances, CocoPanoptic
from mask2former.data.layouts.cvat import Cvat
from mask2former.data.layouts.labelme import LabelMe
from mask2former.data.layouts.layout import Layout
from mask2former.data.layouts.masks import Masks
from mask2former.data.layouts.via import Via
from mask2former.data.layouts.voc import Voc
from mask2former.data.layouts.yolo import Yolo
from mask2former.similar import did_you_mean

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (CocoPanoptic(), CocoInstances(), Cvat(), Via(), LabelMe(), Yolo(), Voc(), Masks())
}


def find_layout(name: str, source: str) -> Layout:
    """A layout by name; `source` says where the name stands."""
    if name not in LAYOUTS:
        raise DataError(f"{source}: there is no layout {name!r}{did_you_mean(name, LAYOUTS, else_all=True)}")
    return LAYOUTS[name]
