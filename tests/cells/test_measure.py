"""Cells measured for real, in a process of their own, on tiny problems; times are looked at by nobody."""

import math
import re
from pathlib import Path

import pytest
import torch

from stepscale.bench.cells import process
from stepscale.bench.cells.build import number_type
from stepscale.bench.cells.failures import classify, fault_of_start
from stepscale.bench.cells.measure import measure_cell
from stepscale.bench.errors import DivergedError, TooSlowError
from stepscale.bench.records import store, tables
from stepscale.bench.records.schema import UNMARKED, Record
from stepscale.models import Classifier, Flow
from tests.support.deeds import misbehaving
from tests.support.jobs import THREADS, job, logged
from tests.support.workloads import OPTIMIZERS


@pytest.mark.parametrize("optimizer", ["relative", "kfac", "naive"])
@pytest.mark.parametrize("overrides", [[], ["dtype=float64"], ["depth=1", "batch=3"]], ids=str)
def test_a_cell_is_measured(tmp_path: Path, optimizer: str, overrides: list[str]) -> None:
    found = measure_cell(logged(job(tmp_path, *overrides, optimizer=optimizer)))
    assert found.status == "ok", found.reason
    row = tables.row(found)
    assert row["step_ms"] > 0 and row["limit_ms"] > 0
    assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
    assert row["flops"] >= row["limit_flops"] > 0
    assert row["period"] == (10 if optimizer == "kfac" else 1)
    assert row["cheap_ms"] <= row["peak_ms"]
    phases = {"gradient", "update"} | ({"statistics", "inverse", "precondition"} if optimizer == "kfac" else set())
    assert set(row["phases_ms"]) - {UNMARKED} == phases
    assert found.environment.torch == torch.__version__


@pytest.mark.parametrize(
    ("model", "optimizer", "log_det"),
    [("autoencoder", "kfac_whole", None), ("classifier", "kfac", None), ("plu_flow", "layerwise", "restricted")],
)
def test_a_cell_of_another_model_is_measured(tmp_path: Path, model: str, optimizer: str, log_det: str | None) -> None:
    found = measure_cell(job(tmp_path, f"model={model}", optimizer=optimizer, dim=16))
    assert found.status == "ok", found.reason
    assert found.direction.log_det == log_det and -1 <= found.direction.cosine <= 1.000001


def test_what_makes_torchs_determinants_wrong_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_DYNAMIC", "FALSE")
    found = measure_cell(job(tmp_path))
    assert found.status == "failed"
    assert "MKL_DYNAMIC=FALSE makes torch's batched LU on CPU silently wrong: unset it" in found.reason


def test_a_diverging_cell_says_so(tmp_path: Path) -> None:
    found = measure_cell(job(tmp_path, "optimizer.update.lr=1e30"))
    assert found.status == "diverged"
    assert "lower the learning rate" in found.reason


SINGULAR = (
    "the weight of layers.1 is singular at the start, if only to rounding, so that log|det W| is not known: "
    "start from a regular one, as nn.init.orthogonal_ makes"
)


@pytest.mark.parametrize("spoilt", ["zero", "equal_rows"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_singular_weight_is_one_cause_of_one_status(tmp_path: Path, optimizer: str, spoilt: str) -> None:
    """Met as a NaN, a failed factorisation or a refusal. Who needs no inverse goes on, or who a rounding gave one."""
    model = ["model._target_=tests.support.theirs.SingularFlow", f"+model.spoilt={spoilt}"]
    found = measure_cell(job(tmp_path, *model, optimizer=optimizer))
    stopped, goes_on = (found.status, found.reason) == ("diverged", SINGULAR), found.status == "ok"
    without = (
        "relative",
        "relative_adam",
        "relative_mfac",
        "relative_momentum",
        "natural",
        "foof",
        "mini_block",
        "shampoo",
        "shampoo_dense",
        "mini_block_dense",
        "kbfgs",
        "kbfgs_limited",
    )
    if optimizer in without:
        assert goes_on, found.reason
    elif spoilt == "zero" or optimizer == "relative_fused":
        assert stopped, found.reason
    else:
        assert stopped or goes_on, found.reason


@pytest.mark.parametrize("optimizer", ["relative", "relative_fused", "kfac", "layerwise"])
def test_no_likelihood_is_trained_from_a_singular_weight(tmp_path: Path, optimizer: str) -> None:
    model = ["model._target_=tests.support.theirs.SingularFlow", "+model.spoilt=equal_rows"]
    brief = ["task=train", "training.max_steps=3", "training.time_limit_s=null", "training.rows=1000"]
    found = measure_cell(job(tmp_path, *model, *brief, optimizer=optimizer))
    assert (found.status, found.reason) == ("diverged", SINGULAR)


def test_a_weight_is_at_fault_only_where_its_determinant_counts() -> None:
    batch = torch.randn(4, 8), torch.randint(0, 3, (4,))
    classifier, flow = Classifier(8), Flow(8)
    for layers in (classifier.layers, flow.layers):
        torch.nn.init.zeros_(layers[1].weight)
    assert fault_of_start(classifier, batch) is None
    assert fault_of_start(flow, batch[0]) == SINGULAR
    assert fault_of_start(Flow(512).bfloat16(), torch.randn(2, 512).bfloat16()) is None, "there is no LU in bfloat16"


def test_a_pair_that_does_not_apply_fails_with_its_reason(tmp_path: Path) -> None:
    found = measure_cell(job(tmp_path, "model._target_=tests.support.theirs.OnlyLoss", "~model.depth"))
    assert found.status == "failed"
    assert "OnlyLoss.capture()" in found.reason
    assert found.traceback is None, "the reason is all that there is to say"


@pytest.mark.parametrize("task", ["time", "train"])
@pytest.mark.parametrize(
    ("model", "status", "reason"),
    [
        ("Scalars", "ok", None),
        ("ComplexWeight", "failed", "ComplexWeight.spectrum is complex64, and cells are measured in real numbers"),
    ],
)
def test_models_of_unusual_parameters(tmp_path: Path, task: str, model: str, status: str, reason: str | None) -> None:
    """Without any dimension or size they are measured; complex ones would be by their real part alone."""
    only = [f"model._target_=tests.support.theirs.{model}", "~model.depth", f"task={task}"]
    brief = ["training.max_steps=3", "training.time_limit_s=null", "training.rows=1000", "batch=8"]
    found = measure_cell(job(tmp_path, *only, *brief, optimizer="layerwise"))
    assert found.status == status, found.reason
    assert found.reason == reason or (reason is not None and reason in (found.reason or ""))


@pytest.mark.parametrize("model", ["OnlyLoss", "Convolution"])
def test_a_model_with_only_a_loss_is_measured(tmp_path: Path, model: str) -> None:
    only = [f"model._target_=tests.support.theirs.{model}", "~model.depth"]
    found = measure_cell(logged(job(tmp_path, *only, optimizer="layerwise")))
    assert found.status == "ok", found.reason
    assert len(found.timing.blocks.limit_s) == len(found.timing.blocks.step_s)
    assert found.counts.limit_flops == found.counts.flops > 0


def test_a_model_without_a_known_product_is_measured_without_a_ratio(tmp_path: Path) -> None:
    only = ["model._target_=tests.support.theirs.NoProduct", "~model.depth"]
    found = measure_cell(logged(job(tmp_path, *only, optimizer="layerwise")))
    assert found.status == "ok", found.reason
    assert (found.timing.blocks.limit_s, found.counts.limit_flops) == ([], None)
    assert "declares no products" in found.notes["limit"]
    assert store.encode(found)


def test_kernels_that_cannot_be_counted_are_timed_without_a_ratio_and_named(tmp_path: Path) -> None:
    only = ["model._target_=tests.support.theirs.OwnAttention", "~model.depth"]
    found = measure_cell(logged(job(tmp_path, *only, optimizer="layerwise")))
    assert found.status == "ok", found.reason
    row = tables.row(found)
    assert row["step_ms"] > 0 and math.isnan(row["ratio"]) and "none of its loss's are known" in found.notes["limit"]
    assert row["uncounted"] == "attention, attention_backward"


def test_a_reason_that_goes_on_in_the_next_line_is_whole() -> None:
    assert classify(ImportError("Error loading 'a.b':\nno attribute 'b'\nAre you sure?"))[1] == (
        "ImportError: Error loading 'a.b': no attribute 'b'"
    )


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError(), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out_of_memory"),
        (DivergedError("x"), "diverged"),
        (TooSlowError("x"), "too_slow"),
        (ValueError("x"), "failed"),
    ],
)
def test_errors_have_their_status(error: Exception, status: str) -> None:
    assert classify(error)[0] == status


def test_what_a_users_constructor_raises_is_the_reason(tmp_path: Path) -> None:
    """Hydra's own message names the target and nothing else."""
    only = ["model._target_=tests.support.theirs.Broken"]
    found = measure_cell(job(tmp_path, *only))
    told = "model._target_=tests.support.theirs.Broken: ValueError: hidden must be even; set hidden=64"
    assert (found.status, found.reason) == ("failed", f"{told}; it was given dim=8, depth=2")
    assert "in __init__" in str(found.traceback)
    named = re.findall(r'File "([^"]+)"', str(found.traceback))
    assert named and not any(Path(name).is_absolute() for name in named), "a record may be published"


def test_what_a_users_constructor_does_not_take_is_left_out_as_it_says(tmp_path: Path) -> None:
    only = "model._target_=tests.support.theirs.OnlyLoss"
    refused = measure_cell(job(tmp_path, only, optimizer="layerwise"))
    assert refused.status == "failed" and refused.reason.endswith("; drop what it does not know by ~model.depth")
    taken = measure_cell(job(tmp_path, only, refused.reason.split()[-1], optimizer="layerwise"))
    assert taken.status == "ok", taken.reason


def test_a_process_of_its_own_leaves_the_record(tmp_path: Path) -> None:
    [found] = process.run([job(tmp_path)])
    assert found.status == "ok", found.reason
    assert found.environment.threads == THREADS
    assert found.environment.allocator["MALLOC_TOP_PAD_"]
    assert found == store.read(tmp_path / "records" / f"{found.identity}.json")


@pytest.mark.parametrize(
    ("deed", "status", "reason"),
    [
        ("SIGKILL", "killed", "ended by SIGKILL"),
        ("SIGRTMIN+6", "killed", "ended by signal 40"),
        ("os._exit", "killed", "ended with status 3"),
        ("sleep", "killed", "longer than timeout_s=3"),
        ("hoard", "out_of_memory", "allocate"),
        ("exit with words", "failed", "SystemExit: bye"),
        ("mute exception", "failed", "MuteError: (its message cannot be read)"),
        ("half a surrogate pair", "failed", "ValueError: a�b"),
    ],
)
def test_whatever_becomes_of_the_process_there_is_a_row(tmp_path: Path, deed: str, status: str, reason: str) -> None:
    limit = "timeout_s=3" if deed == "sleep" else "timeout_s=60"
    [found] = process.run([job(tmp_path, *misbehaving(deed), limit, "memory_gib=0.5")], again=True)
    assert (found.status, reason in found.reason) == (status, True), found.reason
    assert tables.load(tmp_path)["status"].tolist() == [status]
    assert process.run([job(tmp_path)])[0].status == "ok", "the next cell is measured all the same"


@pytest.mark.parametrize("deed", ["hoard", "SIGKILL"])
def test_what_dies_or_finds_no_room_beside_others_leaves_no_record(tmp_path: Path, deed: str) -> None:
    """It may have died of the others' memory; whoever asked for it measures it again, by itself."""
    good, bad = job(tmp_path), job(tmp_path, *misbehaving(deed), "memory_gib=0.5")
    told: list[Record] = []
    found = process.run([good, bad], told.append)
    assert [made.identity for made in found] == [good.identity] == [made.identity for made in told]
    assert found[0].timing.turns is not None
    assert not store.path_of(tmp_path, bad.identity).exists()
    [made] = process.run([bad], again=True)
    assert made.status == ("out_of_memory" if deed == "hoard" else "killed")


def test_cells_in_turns_have_as_many_rounds_until_one_is_done(tmp_path: Path) -> None:
    found = process.run([job(tmp_path, optimizer=name) for name in ("relative", "layerwise", "kfac")])
    assert [made.status for made in found] == ["ok"] * 3
    assert len({made.timing.turns for made in found}) == 1
    assert all(len(made.timing.blocks.step_s) >= 3 for made in found)


SUBNORMAL = "optimizer.update._target_=tests.support.theirs.Subnormal"


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this CPU cannot flush subnormal numbers")
@pytest.mark.parametrize("task", ["time", "train"])
def test_subnormal_numbers_are_zero_unless_they_are_asked_for(tmp_path: Path, task: str) -> None:
    """In all of a cell's threads; 1e-30 · 1e-10 = 1e-40 is below float32's smallest normal number, 1.2e-38."""
    brief = ["training.max_steps=2", "training.rows=200", "training.evaluation_rows=100"] if task == "train" else []
    words = [f"task={task}", SUBNORMAL, *brief]
    asked = [job(tmp_path, *words, f"flush_denormal={flush}") for flush in ("true", "false")]
    assert asked[0].identity != asked[1].identity
    flushed, kept = (process.run([one], again=True)[0] for one in asked)
    assert [flushed.environment.flush_denormal, kept.environment.flush_denormal] == [True, False]
    assert (flushed.status, flushed.reason) == ("failed", "ValueError: the products are [0.0] in 2 threads")
    assert (kept.status, kept.reason) == ("failed", "ValueError: the products are [1.0] in 2 threads")


def test_number_types_are_torch_s_and_tf32_a_way_of_rounding() -> None:
    try:
        assert number_type("tf32") is torch.float32
        assert torch.get_float32_matmul_precision() == "high"
        assert number_type("bfloat16") is torch.bfloat16
    finally:
        number_type("float32")
    assert torch.get_float32_matmul_precision() == "highest"


def mean_is_written() -> bool:
    """Whether a mean of bfloat16 on this CPU goes where it is told to, as in torch 2.5 it does not."""
    into = torch.zeros(8, dtype=torch.bfloat16)
    torch.mean(torch.ones(100, 8, dtype=torch.bfloat16), 0, out=into)
    return into.tolist() == [1.0] * 8


def test_means_of_bfloat16_that_torch_gets_wrong_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "mean", lambda values, dim, out: values.sum(dim).div_(len(values)))
    found = measure_cell(job(tmp_path, "dtype=bfloat16", dtype="bfloat16"))
    assert found.status == "failed" and "means of bfloat16 on CPU silently wrong: use a newer one" in found.reason


@pytest.mark.skipif(not mean_is_written(), reason="this torch is refused")
def test_a_bfloat16_step_is_timed_and_what_has_no_bfloat16_says_so(tmp_path: Path) -> None:
    found = measure_cell(job(tmp_path, "dtype=bfloat16", dtype="bfloat16"))
    assert found.status == "ok", found.reason
    found = measure_cell(job(tmp_path, "dtype=bfloat16", optimizer="layerwise", dtype="bfloat16"))
    assert found.status == "failed" and "BFloat16" in found.reason
