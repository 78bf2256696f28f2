"""Config files: bases, the one published Python tag, and errors that name file and key."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import mask2former
from mask2former.d2 import config_file
from mask2former.d2.config import CfgNode, get_cfg
from mask2former.d2.config_file import _all_keys, load_config_file, merge_config_file, merge_key_values, parse_yaml

DUMP = Path(__file__).parents[1] / "golden" / "detectron2_dump.yaml"
"""`config.yaml` of a run: keys of Detectron2, its DeepLab project and the published code, COCO panoptic R50."""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    def _write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return _write


def test_base_is_relative_to_the_file_and_overwritten_by_it(write) -> None:
    write("base.yaml", "SOLVER: {BASE_LR: 0.1, MAX_ITER: 10}\nSEED: 1\n")
    write("common/mid.yaml", "_BASE_: ../base.yaml\nSOLVER: {MAX_ITER: 20}\n")
    top = write("top.yaml", "_BASE_: common/mid.yaml\nSEED: 3\nDATASETS: {TRAIN: [a]}\n")
    cfg = get_cfg()
    merge_config_file(cfg, top)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SEED) == (0.1, 20, 3)
    assert cfg.DATASETS.TRAIN == ("a",), "a list takes the type of the tuple it replaces"
    assert load_config_file(top) == {
        "SOLVER": {"BASE_LR": 0.1, "MAX_ITER": 20},
        "SEED": 3,
        "DATASETS": {"TRAIN": ["a"]},
    }


def test_several_bases_later_wins_and_one_may_serve_twice(write) -> None:
    write("root.yaml", "SEED: 1\n")
    write("a.yaml", "_BASE_: root.yaml\nSEED: 5\nSOLVER: {MAX_ITER: 3, GAMMA: 0.5}\n")
    write("b.yaml", "_BASE_: root.yaml\nSOLVER: {MAX_ITER: 4}\n")
    cfg = get_cfg()
    merge_config_file(cfg, write("top.yaml", "_BASE_: [a.yaml, b.yaml]\n"))
    assert (cfg.SEED, cfg.SOLVER.MAX_ITER, cfg.SOLVER.GAMMA) == (1, 4, 0.5)


def test_base_in_the_home_folder(write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write("home/base.yaml", "SEED: 9\n")
    cfg = get_cfg()
    merge_config_file(cfg, str(write("top.yaml", "_BASE_: ~/base.yaml\n")))
    assert cfg.SEED == 9


def bombs() -> dict[str, str]:
    """Files that would take hours, or all memory, were they taken at their word."""
    aliases = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
    merges = "a0: &a0 {x0: 1}\n" + "".join(
        f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}], x{i}: 1}}\n" for i in range(1, 60)
    )
    keys = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{k: *a{i - 1}, k: *a{i - 1}}}\n" for i in range(1, 60))
    return {
        "aliases": aliases,
        "merges": merges,
        "equal keys": keys,
        "itself": "a: &a [*a]\n",
        "merges itself": "a: &a {<<: *a}\n",
        "depth": "a: " + "[" * 100_000,
        "size": "# " + "x" * (1 << 20) + "\n",
        "digits": "SEED: " + "9" * 10_000 + "\n",
        "date": "SEED: 2024-13-45\n",
        "sizes": f'A: !!python/object/apply:eval ["[int(x * {"9" * 400}.0 * 2) for x in range(5, 21)]"]\n',
        "no text": "SEED: \x00\n",
    }


@pytest.mark.parametrize("name", bombs())
def test_bombs_end_at_once(write, name: str) -> None:
    with pytest.raises(ValueError, match=r"bomb\.yaml' is (not a valid config file|larger than any)") as error:
        load_config_file(write("bomb.yaml", bombs()[name]))
    assert len(str(error.value)) < 1000


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"SEED: \xff\n")
    with pytest.raises(ValueError, match=r"bytes\.yaml' is not a valid config file"):
        load_config_file(tmp_path / "bytes.yaml")


def test_each_base_is_read_once(write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("b0.yaml", "SEED: 1\nSOLVER: {GAMMA: 0.5}\n")
    for i in range(1, 40):  # 2**39 ways to the first
        write(f"b{i}.yaml", f"_BASE_: [b{i - 1}.yaml, ./b{i - 1}.yaml, b{i - 1}.yaml]\n")
    write("own.yaml", "_BASE_: b5.yaml\nSEED: 2\nSOLVER: {GAMMA: 0.25}\n")
    top = write("top.yaml", "_BASE_: [b39.yaml, own.yaml]\nSOLVER: {MAX_ITER: 7}\n")
    read = []
    monkeypatch.setattr(config_file, "parse_yaml", lambda text, name: read.append(name) or parse_yaml(text, name))
    assert load_config_file(top) == {"SEED": 2, "SOLVER": {"GAMMA": 0.25, "MAX_ITER": 7}}
    assert len(read) == len(set(read)) == 42


def test_endless_bases(write) -> None:
    for i in range(100):
        write(f"b{i}.yaml", f"_BASE_: b{i + 1}.yaml\n")
    with pytest.raises(ValueError, match=r"more than 50 files, each the _BASE_ of the next"):
        load_config_file(write("top.yaml", "_BASE_: b0.yaml\n"))


def test_an_aliased_section_is_two_sections(write) -> None:
    write("base.yaml", "A: &a {X: 1}\nB: *a\n")
    assert load_config_file(write("top.yaml", "_BASE_: base.yaml\nA: {X: 2}\n")) == {"A": {"X": 2}, "B": {"X": 1}}


def test_missing_files_are_named(write, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        merge_config_file(get_cfg(), tmp_path / "nowhere.yaml")
    top = write("top.yaml", "_BASE_: nowhere.yaml\n")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml.*_BASE_ of .*top\.yaml"):
        merge_config_file(get_cfg(), top)


def test_circular_bases(write) -> None:
    write("b.yaml", "_BASE_: a.yaml\n")
    with pytest.raises(ValueError, match=r"Circular _BASE_: .*a\.yaml -> .*b\.yaml -> .*a\.yaml"):
        merge_config_file(get_cfg(), write("a.yaml", "_BASE_: b.yaml\n"))


@pytest.mark.parametrize("base", ["https://example.org/base.yaml", "3"])
def test_base_must_be_a_local_file(write, base: str) -> None:
    with pytest.raises(ValueError, match=r"top\.yaml.*_BASE_ must name local files"):
        merge_config_file(get_cfg(), write("top.yaml", f"_BASE_: {base}\n"))


@pytest.mark.parametrize(
    ("text", "key", "suggestion"),
    [
        ("SOLVER: {BASELR: 1.0}", "SOLVER.BASELR", "SOLVER.BASE_LR"),
        ("MODEL: {NUM_CLASSES: 3}", "MODEL.NUM_CLASSES", "MODEL.SEM_SEG_HEAD.NUM_CLASSES"),
        ("SOLVR: {BASE_LR: 1.0}", "SOLVR", "SOLVER"),
    ],
)
def test_unknown_key_is_named_with_what_was_meant(write, text: str, key: str, suggestion: str) -> None:
    write("typo.yaml", text)
    cfg = get_cfg()
    with pytest.raises(KeyError) as error:
        merge_config_file(cfg, write("top.yaml", "_BASE_: typo.yaml\nSEED: 4\n"))
    assert re.search(rf"typo\.yaml: unknown config key {re.escape(key)} \(did you mean", str(error.value))
    assert suggestion in str(error.value)
    assert cfg == get_cfg(), "nothing is merged when something is wrong"


def test_all_unknown_keys_are_named_at_once(write) -> None:
    with pytest.raises(KeyError, match=r"QQQ.*ZZZ"):
        merge_config_file(get_cfg(), write("top.yaml", "QQQ: 1\nSOLVER: {ZZZ: 1}\n"))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("SOLVER: {MAX_ITER: many}", r"SOLVER\.MAX_ITER"),
        ("SOLVER: {MAX_ITER: 1.5}", r"SOLVER\.MAX_ITER"),
        ("SOLVER: {AMP: true}", r"SOLVER\.AMP"),
        ("SEED: {A: 1}", "SEED"),
        ("SEED: 2024-01-01", "SEED"),
    ],
)
def test_wrong_type_is_named_with_key_and_file(write, text: str, key: str) -> None:
    cfg = get_cfg()
    with pytest.raises(ValueError, match=rf"wrong\.yaml.*{key}"):
        merge_config_file(cfg, write("wrong.yaml", text))
    assert cfg == get_cfg()


def test_base_and_file_disagree_on_what_is_a_section(write) -> None:
    write("base.yaml", "NEW: {A: 1}\n")
    with pytest.raises(ValueError, match=r"NEW is a section in one place"):
        load_config_file(write("top.yaml", "_BASE_: base.yaml\nNEW: 3\n"))


def test_numbers(write) -> None:
    cfg = get_cfg()
    merge_config_file(cfg, write("top.yaml", "SOLVER: {WEIGHT_DECAY: 0, BASE_LR: 1e-4, STEPS: [5]}\n"))
    assert cfg.SOLVER.WEIGHT_DECAY == 0.0
    assert isinstance(cfg.SOLVER.WEIGHT_DECAY, float)
    assert cfg.SOLVER.BASE_LR == 1e-4
    assert cfg.SOLVER.STEPS == (5,)


@pytest.mark.parametrize(
    ("size", "published"),
    [
        (512, (256, 307, 358, 409, 460, 512, 563, 614, 665, 716, 768, 819, 870, 921, 972, 1024)),
        (640, (320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960, 1024, 1088, 1152, 1216, 1280)),
        (1024, (512, 614, 716, 819, 921, 1024, 1126, 1228, 1331, 1433, 1536, 1638, 1740, 1843, 1945, 2048)),
    ],
)
def test_published_size_list_is_computed(write, size: int, published: tuple[int, ...]) -> None:
    sizes = f'!!python/object/apply:eval ["[int(x * 0.1 * {size}) for x in range(5, 21)]"]'
    cfg = get_cfg()
    merge_config_file(cfg, write("published.yaml", f"INPUT:\n  MIN_SIZE_TRAIN: {sizes}\n"))
    assert published == cfg.INPUT.MIN_SIZE_TRAIN


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:eval [\"__import__('os').system('true')\"]",
        '!!python/object/apply:eval ["[int(x * 0.1 * 512) for x in range(5, 21)] + [1]"]',
        '!!python/object/apply:eval ["[int(x * 0.1 * 512) for x in range(5, 99999)]"]',
        "!!python/object/apply:eval []",
        "!!python/object/apply:eval 3",
        "!!python/object/apply:os.system [true]",
        "!!python/name:os.system",
        "!!python/tuple [1, 2]",
        "!custom 3",
    ],
)
def test_no_other_tag_is_accepted(write, value: str) -> None:
    with pytest.raises(ValueError, match=r"tagged\.yaml.*(?s:.)*(never executed|not allowed)"):
        merge_config_file(get_cfg(), write("tagged.yaml", f"INPUT:\n  MIN_SIZE_TRAIN: {value}\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SEED: 1\nSEED: 2\n", "'SEED' is given twice, with two values"),
        ("SEED: 1\nSEED: true\n", "'SEED' is given twice, with two values"),
        ("SOLVER:\n  GAMMA: 0.1\n  GAMMA: 0.2\n", "'GAMMA' is given twice"),
        ("SOLVER: {GAMMA: 0.1}\nSOLVER: {GAMMA: 0.1, STEPS: [5]}\n", "'SOLVER' is given twice"),
        ("SOLVER: [", "not a valid config file"),
        ("- SEED\n", "must hold `KEY: value` pairs"),
        ("1: 2\n", "'1' is not a string"),
        ("? [a]\n: 2\n", "is not a string"),
    ],
)
def test_malformed_yaml_names_the_file(write, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"malformed\.yaml") as error:
        merge_config_file(get_cfg(), write("malformed.yaml", text))
    assert message in str(error.value)


def test_a_key_may_repeat_its_value_as_in_published_files(write) -> None:
    features = 'IN_FEATURES: ["res2", "res3"]'
    text = f"MODEL:\n  SEM_SEG_HEAD:\n    {features}\n    NUM_CLASSES: 7\n    IN_FEATURES:\n    - res2\n    - res3\n"
    cfg = get_cfg()
    merge_config_file(cfg, write("top.yaml", text))
    assert (cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == (["res2", "res3"], 7)


def test_a_dump_of_detectron2_loads(write, caplog: pytest.LogCaptureFixture) -> None:
    cfg = mask2former.get_cfg()
    before = cfg.clone()
    merge_config_file(cfg, DUMP)
    assert (cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.MASK_FORMER.DEC_LAYERS) == (133, 10)
    assert (cfg.SOLVER.STEPS, cfg.INPUT.CROP.SIZE, cfg.MODEL.SWIN.QK_SCALE) == ((327778, 355092), [0.9, 0.9], None)
    (message,) = (text for text in caplog.messages if not text.startswith("Deprecated config key"))
    assert "detectron2_dump.yaml: left out" in message
    assert "MODEL.SEM_SEG_HEAD.LOSS_TYPE" in message, "of the DeepLab project, whose keys published runs have"
    left_out = message.partition("reads: ")[2].split(", ")
    assert not any(key in left_out for key in _all_keys(before, ""))

    older = re.sub(r"\n  (BASE_LR_END|RESCALE_INTERVAL|NUM_DECAYS).*", "", DUMP.read_text("utf-8"))
    merge_config_file(mask2former.get_cfg(), write("older.yaml", older))
    with pytest.raises(ValueError, match=r"wrong\.yaml: .*SOLVER\.MAX_ITER"):
        merge_config_file(cfg, write("wrong.yaml", older.replace("MAX_ITER: 368750", "MAX_ITER: soon")))


def test_a_file_of_all_sections_is_no_dump(write) -> None:
    sections = "VERSION: 2\nMODEL: {DEVICE: cpu}\nINPUT: {FORMAT: RGB}\nSOLVER: {BASELR: 1.0}\nSEED: 1\n"
    with pytest.raises(KeyError, match=r"SOLVER\.BASELR"):
        merge_config_file(get_cfg(), write("sections.yaml", sections))


def test_yaml_anchors_work_and_an_empty_file_changes_nothing(write) -> None:
    cfg = get_cfg()
    merge_config_file(cfg, write("empty.yaml", "# nothing\n"))
    assert cfg == get_cfg()
    merge_config_file(cfg, write("a.yaml", "INPUT: {MAX_SIZE_TEST: &s 77, MAX_SIZE_TRAIN: *s}\n"))
    assert cfg.INPUT.MAX_SIZE_TRAIN == 77


def test_version(write) -> None:
    merge_config_file(get_cfg(), write("two.yaml", "VERSION: 2\n"))
    with pytest.raises(ValueError, match=r"one\.yaml: VERSION 1 is not supported"):
        merge_config_file(get_cfg(), write("one.yaml", "VERSION: 1\n"))


def test_sections_that_allow_new_keys(write) -> None:
    cfg = CfgNode({"FREE": {"A": 1}})
    cfg.set_new_allowed(True)
    merge_config_file(cfg, write("new.yaml", "FREE: {B: 2}\nOTHER: 3\n"))
    assert (cfg.FREE.A, cfg.FREE.B, cfg.OTHER) == (1, 2, 3)


def test_command_line_pairs() -> None:
    cfg = get_cfg()
    merge_key_values(
        cfg, ["SOLVER.BASE_LR", "1", "SOLVER.MAX_ITER", "7", "OUTPUT_DIR", "a/b", "DATASETS.TEST", "('x',)"]
    )
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.OUTPUT_DIR) == (1.0, 7, "a/b")
    assert cfg.DATASETS.TEST == ("x",)
    before = cfg.clone()
    with pytest.raises(KeyError, match=r"command line: unknown config key SOLVER\.BASELR .*SOLVER\.BASE_LR"):
        merge_key_values(cfg, ["SEED", "5", "SOLVER.BASELR", "1"])
    with pytest.raises(ValueError, match="'SEED' has no value"):
        merge_key_values(cfg, ["OUTPUT_DIR", "x", "SEED"])
    with pytest.raises(ValueError, match=r"command line.*SOLVER\.MAX_ITER"):
        merge_key_values(cfg, ["SOLVER.MAX_ITER", "many"])
    assert cfg == before
    merge_key_values(cfg, [])
    assert cfg == before
