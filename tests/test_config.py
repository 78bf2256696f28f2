from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mask2former import add_maskformer2_config, get_cfg
from mask2former.d2 import SOURCE
from mask2former.d2.config import CfgNode
from mask2former.d2.config import get_cfg as get_d2_cfg

PACKAGE = Path(__file__).resolve().parents[1] / "mask2former"


def leaves(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def test_completes_a_configuration_and_keeps_what_it_has() -> None:
    cfg = get_d2_cfg()
    cfg.SOLVER.POLY_LR_POWER = 0.5  # as Detectron2's DeepLab project does
    add_maskformer2_config(cfg)
    assert cfg.SOLVER.POLY_LR_POWER == 0.5
    assert set(leaves(cfg)) == set(leaves(get_cfg()))
    add_maskformer2_config(cfg)  # a second time changes nothing
    assert cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES == 100


@pytest.mark.skipif(SOURCE == "official", reason="Detectron2 has keys of its own that nothing here reads")
def test_every_key_is_read_by_something() -> None:
    sources = [path for path in PACKAGE.rglob("*.py") if path.name not in ("config.py", "defaults.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    text += (PACKAGE / "d2" / "bundled" / "config.py").read_text(encoding="utf-8")
    unread = {key for key in leaves(get_cfg()) if not re.search(rf"\b{key.rpartition('.')[2]}\b", text)}
    assert unread == set()
