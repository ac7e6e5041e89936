"""Bytes of text: whose they are, how they are cut, and that a batch counts them."""

import sysconfig
from pathlib import Path

import pytest
import torch

from stepscale.bench.cells.build import rows_of_batch
from stepscale.bench.cells.measure import measure_cell
from stepscale.bench.cells.time_cell import batches_of
from stepscale.bench.data import text_bytes
from stepscale.bench.data.text_bytes import text
from stepscale.bench.errors import UsageError
from stepscale.models import Transformer, tokens_of_row
from tests.support import jobs, training


def pieces(split: object) -> set[bytes]:
    inputs, targets = split  # type: ignore[misc]
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(inputs[:, 1:], targets[:, :-1]), "each byte's target is the next"
    return {bytes(row) for row in torch.cat([inputs, targets[:, -1:]], 1).tolist()}


def test_rows_of_a_users_file_are_cut_in_its_own_order(tmp_path: Path) -> None:
    """A file of which every two bytes are there once: the place of each row follows from its content."""
    content = b"".join(bytes([k // 200, k % 200]) for k in range(800))
    (tmp_path / "own.txt").write_bytes(content)
    found = text(dim=10, rows=None, seed=0, path=str(tmp_path / "own.txt"))
    places = [sorted(content.index(piece) for piece in pieces(split)) for split in found.splits]
    assert places == [list(range(0, 1190, 10)), list(range(1200, 1390, 10)), list(range(1400, 1590, 10))]
    assert found.note == f"bytes of {tmp_path}/own.txt"


def test_the_standard_library_is_the_same_each_time_and_its_splits_share_no_code() -> None:
    one, same, other = (text(dim=64, rows=300, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.train, same.train, strict=True))
    assert not torch.equal(one.train[0], other.train[0]) and torch.equal(one.held_out[0], other.held_out[0])
    assert [len(split[0]) for split in one.splits] == [300, 512, 512]
    train, validation, held_out = map(pieces, text(dim=64, rows=None, seed=0).splits)
    shared = train & validation | train & held_out | validation & held_out
    assert len(shared) < 10, "a ruler, or a line that two modules have in common, at most"
    library = b"\n".join(path.read_bytes() for path in Path(sysconfig.get_path("stdlib")).glob("*.py"))
    assert all(piece in library for piece in sorted(held_out)[:20]) and "standard library" in one.note


def test_what_cannot_be_cut_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "short.txt").write_bytes(b"x" * 80)
    with pytest.raises(ValueError, match=r"short.txt: 80 in all, a row is of 10; expected 88: lower data.dim"):
        text(dim=10, rows=3, seed=0, path=str(tmp_path / "short.txt"))
    with pytest.raises(FileNotFoundError, match=r"no data file at .*; set data.path"):
        text(dim=10, rows=3, seed=0, path=str(tmp_path / "none.txt"))
    monkeypatch.setattr(text_bytes.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"set data\.path to a text"):
        text(dim=10, rows=3, seed=0)


def test_a_row_is_as_many_of_a_batch_as_it_has_targets() -> None:
    rows, tokens = torch.zeros(6, 4), torch.zeros(6, 4, dtype=torch.int64)
    batches = (rows, tokens, (rows, tokens[:, 0]), (rows, rows), (tokens, tokens))
    assert list(map(tokens_of_row, batches)) == [1, 1, 1, 1, 4]
    assert rows_of_batch((tokens, tokens), 12) == 3 and rows_of_batch((rows, tokens[:, 0]), 12) == 12
    with pytest.raises(UsageError, match=r"batch=13 counts tokens, .* rows have 4: set batch=12, or data.dim"):
        rows_of_batch((tokens, tokens), 13)


TINY = ["model=transformer", "data.dim=8"]


def test_a_step_of_a_language_model_is_timed_on_as_many_tokens_as_the_batch_says(tmp_path: Path) -> None:
    """The limit is of its own count: 12 d² weights a block and the head, thrice, and attention, which sees 8 tokens."""
    asked = jobs.logged(jobs.job(tmp_path, *TINY, "batch=32", optimizer="layerwise", dim=12))
    assert [part.shape for part in batches_of(asked, torch.device("cpu"))[0][0]] == [(4, 8)] * 2
    found = measure_cell(asked)
    assert found.status == "ok", found.reason
    affine = 3 * 2 * 32 * (2 * 12 * 12**2 + 256 * 12)
    assert affine < found.counts.limit_flops <= affine + 2 * 2 * (2 + 5) * 32 * 8 * 12
    assert found.counts.limit_flops <= found.counts.flops and found.timing.blocks.limit_s


def test_training_lowers_the_nats_per_byte(tmp_path: Path) -> None:
    wanted = [*TINY, "batch=128", "training.max_steps=30", "training.rows=400", "optimizer.update.lr=0.02"]
    found = measure_cell(training.job(tmp_path, *wanted, optimizer="adam", dim=12))
    assert found.status == "ok", found.reason
    curve, number = found.training.curve, found.training.number
    assert number.unit == "nats per byte"
    assert -5.7 < curve.validation_nats[0] < -5.4 and curve.validation_nats[-1] > -4
    assert found.training.final.held_out_nats == pytest.approx(curve.validation_nats[-1], abs=0.5)


def test_too_few_rows_for_a_batch_are_named(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_bytes(b"some text" * 20)
    few = [f"data.path={tmp_path}/short.txt", *TINY, "batch=128"]
    found = measure_cell(jobs.job(tmp_path, *few, optimizer="layerwise", dim=12))
    assert found.status == "failed"
    assert found.reason == "the data have 16 train rows, 3 batches have 48: lower batch"


def test_evaluation_holds_no_more_tokens_at_once_than_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    from stepscale.bench.training import evaluation

    model, batch = Transformer(4, 1, context=8).double(), text(dim=8, rows=50, seed=0).train
    whole = evaluation.mean_log_likelihood(model, batch)
    seen, loss = [], model.loss
    monkeypatch.setattr(evaluation, "ROWS", 64)
    monkeypatch.setattr(model, "loss", lambda part: seen.append(part[0].numel()) or loss(part))
    assert evaluation.mean_log_likelihood(model, batch) == pytest.approx(whole, rel=1e-12)
    assert seen == [64] * 6 + [16]
