"""Mask2Former: universal image segmentation by masked-attention mask classification (Cheng et al., CVPR 2022).

Importing this package registers its components with Detectron2's registries; see `mask2former.d2`.
"""

from . import modeling
from .config import add_maskformer2_config, get_cfg

__version__ = "0.1.0"

__all__ = ["add_maskformer2_config", "get_cfg", "modeling"]
