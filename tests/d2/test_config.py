"""The config tree and `configurable`."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mask2former.d2 import SOURCE
from mask2former.d2.config import CfgNode, configurable, get_cfg

bundled_only = pytest.mark.skipif(SOURCE != "bundled", reason="tests the bundled CfgNode")


class Named:
    @configurable
    def __init__(self, *, size: int, name: str = "none", extra: int = 0) -> None:
        self.values = (size, name, extra)

    @classmethod
    def from_config(cls, cfg: CfgNode, name: str = "default") -> dict[str, Any]:
        return {"size": cfg.SIZE, "name": name.upper()}


class Anything:
    @configurable()
    def __init__(self, *, values: tuple[Any, ...]) -> None:
        self.values = values

    @classmethod
    def from_config(cls, cfg: CfgNode, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {"values": (cfg.SIZE, args, kwargs)}


@pytest.fixture
def cfg() -> CfgNode:
    return CfgNode({"SIZE": 7})


def test_configurable_class(cfg: CfgNode) -> None:
    assert Named(size=1, name="a").values == (1, "a", 0)
    assert Named(cfg).values == (7, "DEFAULT", 0)
    assert Named(cfg=cfg).values == (7, "DEFAULT", 0)
    assert Named(cfg, name="x").values == (7, "X", 0), "from_config takes the arguments it names"
    assert Named(cfg, "x").values == (7, "X", 0)
    assert Named(cfg, extra=5, size=2).values == (2, "DEFAULT", 5), "the others overwrite"


def test_configurable_passes_everything_to_variable_arguments(cfg: CfgNode) -> None:
    assert Anything(cfg, 1, b=2).values == (7, (1,), {"b": 2})


def test_configurable_subclass_uses_its_own_from_config(cfg: CfgNode) -> None:
    class Larger(Named):
        @classmethod
        def from_config(cls, cfg: CfgNode, name: str = "larger") -> dict[str, Any]:
            return {**super().from_config(cfg, name), "size": cfg.SIZE + 1}

    assert Larger(cfg).values == (8, "LARGER", 0)


def test_configurable_function(cfg: CfgNode) -> None:
    def from_config(cfg: CfgNode) -> dict[str, Any]:
        return {"a": cfg.SIZE}

    @configurable(from_config=from_config)
    def build(a: int, b: int = 2) -> tuple[int, int]:
        """Doc."""
        return a, b

    assert build(1) == (1, 2)
    assert build(cfg) == (7, 2)
    assert build(cfg, b=3) == (7, 3)
    assert build.__doc__ == "Doc."
    assert build.from_config is from_config


def test_configurable_needs_a_from_config_that_takes_cfg_first(cfg: CfgNode) -> None:
    class Without:
        @configurable
        def __init__(self) -> None: ...

    class Misnamed:
        @configurable
        def __init__(self) -> None: ...

        @classmethod
        def from_config(cls, config: CfgNode) -> dict[str, Any]:
            return {}

    class NotAClassmethod:
        @configurable
        def __init__(self) -> None: ...

        def from_config(self, cfg: CfgNode) -> dict[str, Any]:
            return {}

    with pytest.raises(AttributeError, match="from_config"):
        Without(cfg)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="must take 'cfg' as"):
        Misnamed(cfg)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="classmethod"):
        NotAClassmethod(cfg)  # type: ignore[call-arg]
    with pytest.raises((TypeError, AssertionError)):
        configurable(lambda: None)


def test_defaults_are_a_fresh_copy() -> None:
    cfg = get_cfg()
    cfg.INPUT.CROP.SIZE[0] = 0.1
    cfg.SOLVER.BASE_LR = 5.0
    assert get_cfg().INPUT.CROP.SIZE == [0.9, 0.9]
    assert get_cfg().SOLVER.BASE_LR == 0.001
    assert isinstance(cfg.MODEL.RESNETS, CfgNode)


def test_frozen_config_cannot_be_set() -> None:
    cfg = get_cfg()
    cfg.freeze()
    with pytest.raises(AttributeError, match="immutable"):
        cfg.SEED = 3
    copy = cfg.clone()
    copy.defrost()
    copy.SEED = 3
    assert cfg.SEED == -1


def test_merge_from_list_keeps_types() -> None:
    cfg = get_cfg()
    cfg.merge_from_list(["DATASETS.TRAIN", "['a', 'b']", "SOLVER.MAX_ITER", "5"])
    assert cfg.DATASETS.TRAIN == ("a", "b")
    assert cfg.SOLVER.MAX_ITER == 5
    with pytest.raises(ValueError, match=r"SOLVER\.MAX_ITER"):
        cfg.merge_from_list(["SOLVER.MAX_ITER", "many"])


def test_dump_can_be_merged_back(tmp_path: Path) -> None:
    cfg = get_cfg()
    cfg.SOLVER.STEPS = (1, 2)
    (tmp_path / "dump.yaml").write_text(cfg.dump())
    other = get_cfg()
    other.merge_from_file(str(tmp_path / "dump.yaml"))
    assert other.SOLVER == cfg.SOLVER


@bundled_only
def test_default_device_is_one_that_exists() -> None:
    assert ("cuda" if torch.cuda.is_available() else "cpu") == get_cfg().MODEL.DEVICE


@bundled_only
def test_own_file_reading_executes_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    attack = tmp_path / "attack.yaml"
    attack.write_text(f'SEED: !!python/object/apply:os.mkdir ["{marker}"]\n')
    for read in (get_cfg().merge_from_file, CfgNode.load_yaml_with_base):
        with pytest.raises(ValueError, match=r"attack\.yaml"):
            read(str(attack), allow_unsafe=True)
    with attack.open() as file, pytest.raises(ValueError, match=r"attack\.yaml"):
        CfgNode.load_cfg(file)
    assert not marker.exists()
    assert CfgNode.load_cfg("A: {B: 1}").A.B == 1
