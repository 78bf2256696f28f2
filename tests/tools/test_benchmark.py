"""The benchmark runs, and its files say what it did. Nothing is asserted on how long anything takes."""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from statistics import median
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from mask2former.benchmarks import backends, machine, memory, models, op, report, timing, training
from mask2former.benchmarks.results import Row
from mask2former.benchmarks.scenes import dense_targets, grid_ids, training_inputs
from mask2former.cli.arguments import parse_size
from mask2former.ops import reference
from tools.benchmark import main

CPU = torch.device("cpu")


def run(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """Run a suite in quick mode, and return its file."""
    path = tmp_path / "result.json"
    threads = str(torch.get_num_threads())
    assert main([*arguments, "--quick", "--device", "cpu", "--threads", threads, "--json", str(path)]) == 0
    return json.loads(path.read_text())


def one(document: dict[str, Any], **case: str) -> dict[str, Any]:
    """Return the only row with these values in its case."""
    (row,) = (row for row in document["rows"] if case.items() <= row["case"].items())
    return row


def assert_ratio(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    pairs = zip(theirs["seconds"]["samples"], ours["seconds"]["samples"], strict=True)
    expected = [a / b for a, b in pairs]
    assert ours["ratio"]["samples"] == pytest.approx(expected)
    assert ours["ratio"]["median"] == pytest.approx(median(expected))
    assert ours["ratio"]["min"] == pytest.approx(min(expected))
    assert ours["ratio"]["max"] == pytest.approx(max(expected))


def test_op(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"reference": op.implementations(CPU)["reference"]}
    monkeypatch.setattr(op, "implementations", lambda *args: {**found, "compiled": found["reference"]})
    document = run(tmp_path, "op", "--dtype", "fp32", "bf16")
    assert len(document["rows"]) == 2 * 2 * 2  # types, passes, backends
    case = {"dtype": "fp32", "pass": "forward"}
    reference, other = (one(document, backend=name, **case) for name in ("reference", "compiled"))
    assert_ratio(other, reference)
    assert reference["ratio"] is None
    figures = reference["figures"]
    S = sum(h * w for h, w in ((8, 12), (4, 6), (2, 3)))
    traffic = 4 * S * (8 * 32 + 8 * 12 * 2 + 8 * 12 + 8 * 32)
    assert figures["GB/s"] == pytest.approx(traffic / reference["seconds"]["median"] / 1e9)
    assert figures["share of copy %"] == pytest.approx(100 * figures["GB/s"] / figures["copy GB/s"])

    text = capsys.readouterr().out
    assert "--dtype fp32 bf16" in document["command"]
    assert document["command"] in text
    assert document["settings"]["threads"] == torch.get_num_threads()
    assert document["versions"]["torch"]
    assert "cores" in document["machine"]["CPU"]


def test_op_beside_a_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is installed is called as it documents itself, and is measured in turn."""

    def ms_deform_attn(value: Any, shapes: Any, starts: Any, locations: Any, weights: Any) -> Any:
        assert starts.tolist() == [0, 96, 120]
        assert locations.dtype == value.dtype
        return reference.ms_deform_attn(value, shapes.tolist(), locations, weights)

    peer = ModuleType("torch_ms_deform_attn")
    peer.__spec__ = ModuleSpec(peer.__name__, None)
    peer.ms_deform_attn = ms_deform_attn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, peer.__name__, peer)
    monkeypatch.setattr(backends, "COMPILED", ())
    document = run(tmp_path, "op", "--dtype", "bf16")
    for name in ("forward", "forward and backward"):
        rows = [one(document, **{"backend": which, "pass": name}) for which in (backends.PEER, backends.REFERENCE)]
        assert_ratio(*rows)


def test_op_inputs_are_those_of_an_encoder() -> None:
    example = op.make_example((64, 90), 2, torch.bfloat16, CPU, seed=0)
    assert example.levels == [(8, 12), (4, 6), (2, 3)]
    assert example.value.dtype == torch.bfloat16
    assert example.locations.dtype == torch.float32
    centres = example.locations.detach().mean(dim=(0, 2, 3, 4))
    torch.testing.assert_close(centres[0], torch.tensor([0.5 / 12, 0.5 / 8]), atol=0.2, rtol=0)
    torch.testing.assert_close(centres[95], torch.tensor([11.5 / 12, 7.5 / 8]), atol=0.2, rtol=0)
    assert op.traffic(example, True) == 3 * op.traffic(example, False) - example.gradient.nbytes


def test_inference_against_transformers(tmp_path: Path) -> None:
    document = run(
        tmp_path, "inference", "--model", "Swin-T", "--against", "transformers", "--stages",
        "--dtype", "fp32", "bf16", "--opts", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "24",
    )  # fmt: skip
    theirs = one(document, of="transformers")
    assert theirs["case"]["tasks"] == "model alone"
    for tasks in ("panoptic", "all"):
        (ours,) = (row for row in document["rows"] if row["suite"] == "inference" and row["case"] == {
            "model": "Swin-T", "size": "64x96", "dtype": "fp32", "of": "ours", "tasks": tasks,
        })  # fmt: skip
        assert_ratio(ours, theirs)
        assert ours["ratio"]["versus"] == "transformers fp32"
        figures = ours["figures"]
        assert 0 < figures["logit difference"] < models.TOLERANCE
        assert figures["GFLOP/s"] == pytest.approx(figures["GFLOPs"] / ours["seconds"]["median"])
        assert 0 < figures["queries kept"] < 24
    stages = [row["case"]["stage"] for row in document["rows"] if row["suite"] == "inference stages"]
    assert stages == ["backbone", "pixel decoder", "transformer decoder", "post-processing"] * 4


def test_other_models_are_refused() -> None:
    cfg = models.model_cfg("R50", "cpu", quick=True)
    ours, theirs = models.our_model(cfg, 0), models.their_model(cfg)
    with pytest.raises(ValueError, match="logits differ"):
        models.compare_logits(ours, theirs, torch.zeros(3, 64, 64))


def test_training_against_transformers(tmp_path: Path) -> None:
    document = run(tmp_path, "train", "--against", "transformers", "--instances", "3")
    ours, theirs = (one(document, of=name) for name in ("ours", "transformers"))
    assert_ratio(ours, theirs)
    assert ours["case"]["images"] == "2 x 64x96, 3 instances each"
    figures = ours["figures"]
    assert figures["images/s"] == pytest.approx(2 / ours["seconds"]["median"])
    assert figures["peak / theirs"] == pytest.approx(figures["peak GiB"] / theirs["figures"]["peak GiB"])
    assert 0 < figures["peak GiB above the model"] < figures["peak GiB"] < 1
    assert figures["logit difference"] < models.TOLERANCE


def test_a_process_that_measures_memory_imports_what_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stop_here.py").write_text("raise ValueError('imported')\n")
    monkeypatch.chdir(tmp_path)
    settings = training.Settings("R50", "cpu", "fp32", (64, 64), 2, 4, 0, True, [], ["stop_here"])
    with pytest.raises(ValueError, match="imported"):
        training._peak("ours", settings, threads=1)


def test_steps_of_both_models_have_gradients() -> None:
    settings = training.Settings("R50", "cpu", "fp32", (64, 64), 2, 4, 0, True, [], [])
    ours = models.our_model(settings.cfg(), 0)
    theirs = models.their_model(settings.cfg(), ours.state_dict())
    for build, model in ((training.our_step, ours), (training.their_step, theirs)):
        step = build(settings, model)
        assert step() > 1
        assert step() > 1  # gradients do not pile up, and do not fail
        missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing


def test_criterion(tmp_path: Path) -> None:
    document = run(tmp_path, "criterion", "--instances", "2", "--predictions", "3")
    assert len(document["rows"]) == 4
    ours, loop = (one(document, **{"of": name, "pass": "forward and backward"}) for name in ("ours", "loop"))
    assert_ratio(ours, loop)
    assert ours["case"]["predictions"] == "3"


def test_functions_take_turns() -> None:
    calls: list[str] = []
    functions = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    samples = timing.in_turn(functions, rounds=3, warmup=1, device=CPU, title="", repeat_short=False)
    assert "".join(calls[2:]) == "ababab"
    assert [len(samples[name]) for name in "ab"] == [3, 3]


def test_memory_of_a_new_process() -> None:
    peak = memory.peak_memory(allocate, 64, device="cpu", threads=1, prepare=nothing)
    assert 192 * 2**20 <= peak.above_start < 256 * 2**20
    assert 128 * 2**20 <= peak.above_model < 192 * 2**20


def allocate(mebibytes: int) -> Any:
    """Hold some memory as a model does, and take twice as much in a step."""
    held = torch.ones(mebibytes * 2**18)
    return lambda: torch.cat([held, held]).sum() if len(held) else None


def nothing() -> None:
    pass


def test_grid() -> None:
    ids = grid_ids(10, (40, 60))
    assert sorted(set(ids.ravel().tolist())) == list(range(11))
    classes, masks = dense_targets(10, (40, 60))
    assert masks.sum(dim=0).max() == 1
    assert masks.flatten(1).any(dim=1).all()
    (first, second) = training_inputs(10, (40, 60), 2)
    assert first["instances"].gt_classes.tolist() == classes.tolist()
    assert not torch.equal(first["image"], second["image"])
    with pytest.raises(ValueError, match="do not fit"):
        grid_ids(1000, (40, 60))
    assert (parse_size("512"), parse_size("800x1333")) == ((512, 512), (800, 1333))


def test_waits_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {
        "cudaStreamSynchronize": 2,
        "cudaDeviceSynchronize": 1,
        "Memcpy DtoH (Device -> Pageable)": 3,
        "aten::mm": 9,
    }
    events = [SimpleNamespace(key=key, count=count) for key, count in counts.items()]

    class Profile(nn.Identity):
        def __enter__(self) -> Any:
            return SimpleNamespace(key_averages=lambda: events)

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(torch.profiler, "profile", Profile)
    assert training.count_synchronizations(lambda: None) == {"waits": 2.0, "copies to the host": 3.0}


def document(*rows: Row, device: str = "cpu", quick: bool = False) -> dict[str, Any]:
    settings = {"device": device, "threads": 2, "quick": quick}
    shared = {"command": "python x", "date": "2030-01-02T03:04:05", "machine": {"CPU": "fast"}, "versions": {}}
    return {**shared, "settings": settings, "rows": [row.to_json() for row in rows]}


def op_row(ratios: list[float]) -> Row:
    case = {"size": "512x512", "batch": "1", "dtype": "fp32", "pass": "forward", "backend": "compiled"}
    return Row(suite="op", case=case, seconds=[0.25, 0.5, 0.75], versus="reference", ratios=ratios)


def test_report(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(document(op_row([14.0, 16.0, 18.0]))))
    target = tmp_path / "benchmarks.md"
    target.write_text((Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text())
    assert main(["report", str(tmp_path / "a.json"), "--output", str(target)]) == 0
    text = target.read_text()
    assert "500 ms (250 to 750)" in text
    assert "16.00 (14.00 to 18.00) reference" in text
    assert "`python x`" in text
    assert main(["report", str(tmp_path / "a.json"), "--output", str(target)]) == 0
    assert target.read_text() == text

    (tmp_path / "a.json").write_text(json.dumps(document(quick=True)))
    with pytest.raises(ValueError, match="--quick"):
        main(["report", str(tmp_path / "a.json"), "--output", str(target)])
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ValueError, match="is not a file"):
        main(["report", str(tmp_path / "a.json"), "--output", str(target)])
    with pytest.raises(ValueError, match="no table 'speed'"):
        report.render("<!-- begin speed -->\n<!-- end speed -->", [])


def test_best_rates_are_positive() -> None:
    assert machine.copy_bandwidth(CPU, quick=True) > 0
    products = machine.matrix_products(64, CPU, torch.float32)
    wanted = torch.full((64, 64), 64.0)
    assert all(torch.equal(product().reshape(64, 64), wanted) for product in products.values())
