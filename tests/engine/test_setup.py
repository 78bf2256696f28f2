"""Command line → config, output folder, log."""

import logging
from pathlib import Path

import pytest
import yaml

from mask2former import get_cfg
from mask2former.engine.setup import (
    default_argument_parser,
    describe_environment,
    load_cfg,
    setup,
    setup_logging,
    use_available_device,
    write_config,
)
from tests.helpers.training import restored_logging


@pytest.fixture
def _root_logger():
    with restored_logging():
        yield


def parse(*arguments):
    return default_argument_parser().parse_args(list(arguments))


def test_arguments_are_detectron2s():
    args = parse(
        *("--config-file", "a.yaml", "--eval-only", "--resume", "--num-gpus", "2", "--num-machines", "3"),
        *("--machine-rank", "1", "--dist-url", "tcp://host:1", "SOLVER.MAX_ITER", "5", "OUTPUT_DIR", "out"),
    )
    assert vars(args) == {
        "strict": False,
        "allow_missing_weights": False,
        "modules": [],  # ours
        "config_file": "a.yaml",
        "eval_only": True,
        "resume": True,
        "num_gpus": 2,
        "num_machines": 3,
        "machine_rank": 1,
        "dist_url": "tcp://host:1",
        "opts": ["SOLVER.MAX_ITER", "5", "OUTPUT_DIR", "out"],
    }


def test_file_then_options(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("SOLVER:\n  MAX_ITER: 7\n  BASE_LR: 0.5\n")
    cfg = load_cfg(get_cfg(), str(file), ["SOLVER.MAX_ITER", "9"])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR) == (9, 0.5)
    assert cfg.is_frozen()


def test_misspelt_option_names_key_and_suggestion():
    with pytest.raises(KeyError, match=r"SOLVER\.MAX_ITERS.*did you mean SOLVER\.MAX_ITER"):
        load_cfg(get_cfg(), "", ["SOLVER.MAX_ITERS", "5"])


def test_misspelt_key_in_a_file_names_file_key_and_suggestion(tmp_path):
    file = tmp_path / "broken.yaml"
    file.write_text("MODEL:\n  MASK_FORMER:\n    NUM_OBJECT_QUERY: 5\n")
    with pytest.raises(
        KeyError, match=r"broken\.yaml.*MASK_FORMER\.NUM_OBJECT_QUERY.*did you mean .*NUM_OBJECT_QUERIES"
    ):
        load_cfg(get_cfg(), str(file))


def test_wrong_type_names_the_key():
    with pytest.raises(ValueError, match=r"SOLVER\.MAX_ITER|MAX_ITER"):
        load_cfg(get_cfg(), "", ["SOLVER.MAX_ITER", "many"])


def test_option_without_value_is_named():
    with pytest.raises(ValueError, match="'OUTPUT_DIR' has no value"):
        load_cfg(get_cfg(), "", ["OUTPUT_DIR"])


def test_cuda_becomes_cpu_where_there_is_none(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cuda"
    assert use_available_device(cfg).MODEL.DEVICE == "cpu"
    assert cfg.MODEL.DEVICE == "cuda"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert use_available_device(cfg).MODEL.DEVICE == "cuda"


@pytest.mark.usefixtures("_root_logger")
def test_setup_writes_config_and_log(tmp_path):
    cfg = setup(parse("OUTPUT_DIR", str(tmp_path / "new" / "out"), "SOLVER.MAX_ITER", "5"), get_cfg())
    output = Path(cfg.OUTPUT_DIR)
    assert sorted(path.name for path in output.iterdir()) == ["config.yaml", "log.txt"]
    assert yaml.safe_load(load_cfg(get_cfg(), str(output / "config.yaml")).dump()) == yaml.safe_load(cfg.dump())
    assert "torch" in (output / "log.txt").read_text()


@pytest.mark.usefixtures("_root_logger")
def test_logging_of_other_ranks_goes_to_their_file_only(tmp_path, capsys):
    for _ in range(2):  # a second call replaces the first: every line appears once
        setup_logging(tmp_path, rank=1)
    logging.getLogger("mask2former.test").info("hello")
    assert capsys.readouterr().out == ""
    assert (tmp_path / "log.txt.rank1").read_text().count("hello") == 1


def test_environment_names_versions():
    text = describe_environment()
    for word in ("python 3", "torch 2", "detectron2 ", "gpu "):
        assert word in text


def plain(cfg):
    """Values as YAML has them, without tuples, which defaults of Detectron2 are among."""
    return yaml.safe_load(cfg.dump())


def test_a_config_that_is_based_on_another_stays_and_the_complete_one_goes_beside(tmp_path):
    base = tmp_path / "base.yaml"
    base.write_text("SOLVER:\n  MAX_ITER: 7\n")
    short = tmp_path / "config.yaml"
    short.write_text("# mine\n_BASE_: base.yaml\n")
    cfg = load_cfg(get_cfg(), str(short))
    write_config(cfg, short)
    assert short.read_text() == "# mine\n_BASE_: base.yaml\n"
    assert plain(load_cfg(get_cfg(), str(tmp_path / "config_full.yaml"))) == plain(cfg)
    short.write_text("SEED: 3\n")
    write_config(cfg, short)
    assert plain(load_cfg(get_cfg(), str(short))) == plain(cfg)
