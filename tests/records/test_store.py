import math
import os
import re
import socket
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from stepscale.bench.atomic import atomic_write
from stepscale.bench.errors import BadRecordError
from stepscale.bench.records import store, tables
from stepscale.bench.records.schema import Gradient, Machine, Record, Status, Task
from stepscale.bench.records.store import Planned
from tests.support.synthetic import record

FIXTURES, RESULTS = Path(__file__).parent, Path(__file__).parents[2] / "results"


def test_a_record_survives_saving_and_loading(tmp_path: Path) -> None:
    made = record("relative", 64, 0, 2e-3)
    path = store.save(made, tmp_path)
    got, expected = tables.row(store.read(path)), tables.row(made)
    assert got.pop("phases_ms") == pytest.approx(expected.pop("phases_ms"))
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value)
    assert (store.read(path).environment, store.read(path).machine) == (made.environment, made.machine)
    assert list((tmp_path / "records").iterdir()) == [path], "no partial file stays"


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        ({}, {"status": Status.FAILED}, "before"),
        ({}, {"status": Status.KILLED, "signal": 9}, "before"),
        ({}, {"status": Status.DIVERGED}, "after"),
        ({"status": Status.FAILED}, {"status": Status.FAILED}, "after"),
        ({"status": Status.FAILED}, {}, "after"),
    ],
    ids=str,
)
def test_what_failed_takes_no_settled_records_place(
    tmp_path: Path, before: dict[str, object], after: dict[str, object], kept: str
) -> None:
    for name, told in (("before", before), ("after", after)):
        path = store.save(replace(record("relative", 64, 0, 1e-3), command=name, **told), tmp_path)
    assert store.read(path).command == kept


def test_an_unknown_status_is_refused(tmp_path: Path) -> None:
    path = store.save(record("naive", 64, 0, 1e-3), tmp_path)
    path.write_text(path.read_text().replace('"status":"ok"', '"status":"tired"'))
    with pytest.raises(BadRecordError, match=r"Invalid enum value 'tired' - at `\$.status`"):
        store.read(path)


def test_no_record_holds_what_json_does_not(tmp_path: Path) -> None:
    """A cosine that is no number is unknown; a time that is none is no measurement."""
    made = record("relative", 64, 0, 2e-3)
    made.direction = Gradient(cosine=math.nan)
    path = store.save(made, tmp_path)
    assert b"NaN" not in path.read_bytes()
    kept = store.read(path)
    assert kept.direction is not None and kept.direction.cosine is None and kept.timing is not None
    made.timing.blocks.step_s[3] = math.inf
    lost = store.read(store.save(replace(made, identity="lost"), tmp_path))
    assert (lost.status, lost.timing) == (Status.FAILED, None)
    assert "a figure is no finite number" in lost.reason and "step_s" in lost.reason


@pytest.mark.parametrize("schema", [1, 2])
def test_a_record_of_each_schema_is_read(schema: int) -> None:
    """Kept as they were written; that of schema 1 holds a NaN, which is no JSON."""
    found = store.decode((FIXTURES / f"schema_{schema}.json").read_bytes())
    assert (found.schema, found.task, found.status) == (2, Task.TIME, Status.OK)
    assert (found.machine.cpu, found.machine.cores, found.environment.torch) == ("AMD EPYC", 2, "2.13.0+cpu")
    assert found.direction == Gradient(log_det="exact", cosine=None)
    assert found.timing is not None and found.timing.blocks.step_s[0] > 0


def test_every_published_record_is_read() -> None:
    for run in (path.parent for path in RESULTS.glob("*/records")):
        found, complaints = store.read_all(run)
        assert found and not complaints
        assert len({record.machine.name for record in found}) == 1, "of one machine"
        assert all(record.machine.host == "" for record in found)


def test_a_full_disk_leaves_no_half_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(old: Path, new: Path) -> None:
        raise OSError(28, "No space left on device")

    kept = store.save(record("relative", 64, 0, 2e-3), tmp_path)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"cannot be written.*No space left.*already there are whole"):
        store.save(record("relative", 128, 0, 2e-3), tmp_path)
    assert list((tmp_path / "records").iterdir()) == [kept]


def test_two_nodes_that_write_one_file_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their processes may have the same number."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with atomic_write(tmp_path / "file") as one:
        one.write(b"a long text")
        with atomic_write(tmp_path / "file") as other:
            other.write(b"short")
        assert (tmp_path / "file").read_bytes() == b"short"
    assert (tmp_path / "file").read_bytes() == b"a long text"


def test_numbers_of_numpy_and_notes_of_any_kind_lose_no_measurement(tmp_path: Path) -> None:
    made = record("relative", 64, 0, 2e-3)
    made.counts.flops, made.data_note = np.float64(5.0), Path("a/file")  # type: ignore[assignment]
    kept = store.read(store.save(made, tmp_path))
    assert kept.status is Status.OK and (kept.counts.flops, kept.data_note) == (5.0, "a/file")
    made.data_note = 5  # type: ignore[assignment]
    lost = store.read(store.save(replace(made, identity="lost"), tmp_path))
    assert lost.status is Status.FAILED and "data_note" in lost.reason


def test_a_schema_that_is_no_number_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"schema": []}')
    with pytest.raises(BadRecordError, match=r"x\.json"):
        store.read(path)


def of_seeds(*seeds: int) -> list[Record]:
    return [record("relative", dim, seed, 1e-3) for dim in (64, 128) for seed in seeds]


def elsewhere(made: Record) -> Record:
    """Return the same cell's record by another machine, which has other threads."""
    other = replace(made, identity=f"{made.identity[:-1]}x", machine=Machine(cpu="another", cores=9))
    return replace(other, cell=replace(made.cell, threads=9))


@pytest.mark.parametrize(
    ("there", "missing"),
    [
        (of_seeds(0, 1), 0),
        ([*of_seeds(0), *(replace(made, finished="2030") for made in of_seeds(0))], 2),
        ([*of_seeds(0), *map(elsewhere, of_seeds(0))], 2),
        ([*of_seeds(0), *of_seeds(2)], 2),
    ],
    ids=["all", "measured twice", "on two machines", "a further seed"],
)
def test_cells_are_missing_and_not_records(there: list[Record], missing: int) -> None:
    parts, further = ([[["dim=64,128", f"seed={seed}"]] for seed in seeds] for seeds in ((0, 1), (2,)))
    assert Planned(cells=4, parts=parts, further=further, code="made").missing(there) == missing


def odd_files(folder: Path) -> list[str]:
    """Put what is no record into a folder of records; return the names."""
    os.mkfifo(folder / "fifo.json")
    (folder / "folder.json").mkdir()
    (folder / "dangling.json").symlink_to("nowhere")
    (folder / "loop.json").symlink_to("loop.json")
    (folder / "endless.json").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.relpath(folder / "socket.json"))
    with (folder / "huge.json").open("wb") as file:
        file.truncate(100 << 20)
    (folder / "digits.json").write_text("9" * 100_000)
    (folder / "deep.json").write_text('{"schema":2,"config":' + "[" * 100_000 + "]" * 100_000 + "}")
    return [path.name for path in folder.iterdir()]


def test_odd_files_among_the_records_are_named_and_block_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "records"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    names = odd_files(folder)
    kept = store.save(record("relative", 64, 0, 2e-3), tmp_path)
    found, complaints = store.read_all(tmp_path)
    assert [one.identity for one in found] == [kept.stem]
    assert sorted(line.split(" ")[0] for line in complaints) == sorted(str(folder / name) for name in names)
    assert all(len(line) < 700 + len(str(folder)) for line in complaints)


def test_a_record_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = store.save(record("relative", 64, 0, 2e-3), tmp_path)
    expected = store.read(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert store.read(path) == expected


def test_bytes_that_are_no_text_are_seen_where_nothing_is_read_either(tmp_path: Path) -> None:
    path = store.save(record("relative", 64, 0, 2e-3), tmp_path)
    path.write_bytes(path.read_bytes().replace(b'{"schema"', b'{"unknown":"\xf8","schema"'))
    with pytest.raises(BadRecordError, match=r"is damaged .*0xf8"):
        store.read(path)


def test_a_copy_of_a_record_is_no_second_measurement(tmp_path: Path) -> None:
    path = store.save(record("relative", 64, 0, 2e-3), tmp_path)
    path.with_name("copy.json").write_bytes(path.read_bytes())
    found, (complaint,) = store.read_all(tmp_path)
    assert len(found) == 1 and f"copy.json holds the record {path.stem}, of another name" in complaint


IMPOSSIBLE = [
    ('"step_s":[0.002,', '"step_s":[-0.002,'),
    ('"step_s":[0.002,', '"step_s":[0.0,'),
    ('"step_s":[0.002,', '"step_s":["0.002",'),
    ('"step_s":[0.002,', '"step_s":[NaN,'),
    ('"step_s":[0.002,', '"step_s":[1e999,'),
    ('"step_s":[0.002,', '"step_s":['),
    ('"dim":64', '"dim":0'),
    ('"dim":64', '"dim":1e3'),
    ('"dim":64', f'"dim":{"9" * 5000}'),
    ('"share":1.0', '"share":7.0'),
    ('"phases_s":{"gradient":0.0018,"update":0.0002}', '"phases_s":{}'),
    ('"flops":200000000.0', '"flops":-1'),
    ('"config":{"task":"time","timing":{"max_step_s":2}}', '"config":5'),
    ('"max_step_s":2', '"max_step_s":null'),
    ('"max_step_s":2', f'"max_step_s":2,"a":{"[" * 200}{"]" * 200}'),
    ('"memory":{', '"memory":null,"more":{'),
    ('"trace":[', '"trace":[],"more":['),
]


@pytest.mark.parametrize(("right", "wrong"), IMPOSSIBLE, ids=[f"{k}" for k in range(len(IMPOSSIBLE))])
def test_an_impossible_value_makes_a_record_a_damaged_one(tmp_path: Path, right: str, wrong: str) -> None:
    path = store.save(record("relative", 64, 0, 2e-3), tmp_path)
    text = path.read_text()
    assert right in text, text
    path.write_text(text.replace(right, wrong, 1))
    with pytest.raises(BadRecordError, match=re.escape(str(path))):
        store.read(path)


def test_a_lone_surrogate_is_replaced_when_a_record_is_read(tmp_path: Path) -> None:
    made = record("relative", 64, 0, 2e-3)
    made.reason = "half a pair: \ud800"
    assert store.read(store.save(made, tmp_path)).reason == "half a pair: ?"
