"""Folders merge into one as sets do: in any order, as often as one likes, and nothing is lost or changed."""

import itertools
import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from stepscale.bench.cli import merge as command
from stepscale.bench.errors import BadRecordError, UsageError
from stepscale.bench.records import merging, store, tables
from stepscale.bench.records.merging import merge
from tests.support.machines import elsewhere, published, saved
from tests.support.synthetic import failed, record

RUN = ("relative", 64, 0, 1e-3)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def contents(*folders: Path) -> set[bytes]:
    return {path.read_bytes() for folder in folders for path in (folder / "records").iterdir()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs: of this machine, of it and another, and of cells that all three hold, with other figures."""
    folder, here = tmp_path_factory.mktemp("runs"), published(dims=[64, 256])
    a = saved(here, folder / "a")
    b = saved([*here[:3], *elsewhere(here)], folder / "b")
    c = saved([replace(one, finished=f"202{k}-01-01") for k, one in enumerate(here[:8])], folder / "c")
    for run in (a, b, c):
        (run / "run.json").write_text(json.dumps({"cells": 9, "identities": [], "name": run.name}, indent=1) + "\n")
        (run / "operations").mkdir()
        (run / "operations" / "log.json").write_text(f'{{"notes": {{"of": "{run.name}"}}}}')
        (run / "pictures").mkdir()
        (run / "pictures" / f"{here[0].identity}.npz").write_bytes(run.name.encode())
        (run / "checkpoints").mkdir()
        (run / "checkpoints" / "x.pt").write_text("of a run that goes on")
    return [a, b, c]


def test_the_order_does_not_matter_and_again_adds_nothing(runs: list[Path], tmp_path: Path) -> None:
    found = []
    for k, order in enumerate(itertools.permutations(runs)):
        merge(order, tmp_path / f"at once {k}")
        found.append(tree(tmp_path / f"at once {k}"))
        one_by_one = tmp_path / f"one by one {k}"
        for run in (*order, order[0], order[1]):
            merge([run], one_by_one)
        found.append(tree(one_by_one))
    a, b, c = runs
    merge([a, b], tmp_path / "ab")
    merge([tmp_path / "ab", b], tmp_path / "abb")
    merge([b, a, tmp_path / "ab"], tmp_path / "ba")
    assert tree(tmp_path / "ab") == tree(tmp_path / "abb") == tree(tmp_path / "ba")
    merge([c, tmp_path / "ab"], tmp_path / "cab")
    merge([tmp_path / "cab"], tmp_path / "cab")
    assert all(one == found[0] for one in [*found, tree(tmp_path / "cab")])


def test_every_record_is_there_as_it_was(runs: list[Path], tmp_path: Path) -> None:
    merged = merge(runs, tmp_path)
    assert contents(tmp_path) == contents(*runs), "byte for byte"
    assert (merged.records, merged.new, merged.complaints) == (len(contents(*runs)), len(contents(*runs)), [])
    assert not (tmp_path / "checkpoints").exists()
    found, complaints = store.read_all(tmp_path)
    assert len(found) == merged.records and not complaints


def test_the_latest_of_a_cells_records_counts(tmp_path: Path) -> None:
    made = [replace(record(*RUN[:3], 1e-3 * k), finished=f"2026-01-0{k}") for k in (1, 3, 2)]
    runs = [saved([one], tmp_path / str(k)) for k, one in enumerate(made)]
    for run, one in zip(runs, made, strict=True):
        (run / "pictures").mkdir()
        (run / "pictures" / f"{one.identity}.npz").write_text(one.finished)
    into = tmp_path / "into"
    for run in runs:
        merged = merge([run], into)
    assert merged.records == 3 and merged.beside == 2
    identity = made[0].identity
    assert store.read(into / "records" / f"{identity}.json").finished == "2026-01-03"
    assert (into / "pictures" / f"{identity}.npz").read_text() == "2026-01-03", "its pictures are its own"
    assert sorted(path.read_text() for path in (into / "pictures").iterdir()) == [f"2026-01-0{k}" for k in (1, 2, 3)]
    with pytest.warns(UserWarning, match="Left out: 2 records of cells that the same code has measured several times"):
        table = tables.load(into)
    assert table["step_ms"].to_list() == pytest.approx([3.0])
    path = next(path for path in (into / "records").iterdir() if path.stem != identity)
    path.write_bytes(path.read_bytes().replace(b"2026-01-0", b"2027-01-0"))
    with pytest.raises(BadRecordError, match="of another name"):
        store.read(path)


def test_a_published_copy_is_no_second_record(tmp_path: Path) -> None:
    """Whichever is merged first, and also where neither counts."""
    made = replace(record(*RUN), command="stepscale into=elsewhere", finished="2026-01-01")
    made.machine = replace(made.machine, host="mine")
    copy = replace(made, command="stepscale into=run", machine=replace(made.machine, host=""))
    runs = [saved([one], tmp_path / str(k)) for k, one in enumerate((made, copy, replace(made, finished="2026-02-01")))]
    for run in runs:
        (run / "pictures").mkdir()
        (run / "pictures" / f"{made.identity}.npz").write_text("the same")
    merge(runs, tmp_path / "at once")
    for number, order in enumerate(itertools.permutations(runs)):
        for run in order:
            merge([run], tmp_path / f"in turns {number}")
        assert tree(tmp_path / f"in turns {number}") == tree(tmp_path / "at once")
    assert {one.machine.host for one in store.read_all(tmp_path / "at once")[0]} == {"mine"}
    assert len(tree(tmp_path / "at once")) == 4
    assert tables.united([[made], [copy]]) == [made] and tables.united([[copy], [made]]) == [copy]


def test_a_later_failure_does_not_take_a_measurements_place(tmp_path: Path) -> None:
    fine = replace(record(*RUN), finished="2026-01-01")
    lost = replace(failed(*RUN[:3], "failed"), finished="2026-01-02")
    killed = replace(failed(*RUN[:3], "killed"), finished="2026-01-03", signal=9)
    for k, one in enumerate((fine, lost, killed)):
        merge([saved([one], tmp_path / str(k))], tmp_path / "into")
    assert store.read(tmp_path / "into" / "records" / f"{fine.identity}.json").status == "ok"
    for order in itertools.permutations([fine, lost, killed]):
        assert tables.newest(order) == [fine]
    assert tables.newest([lost, killed]) == [killed]
    other = replace(lost, identity="of other code", environment=replace(lost.environment, code="other"))
    assert tables.newest([fine, other]) == [other], "which does fail"


def test_pictures_go_where_their_record_goes(tmp_path: Path) -> None:
    """The later record has none: those of the earlier are not shown for it."""
    made = [replace(record(*RUN[:3], 1e-3 * k), finished=f"2026-01-0{k}") for k in (1, 2)]
    early, late = (saved([one], tmp_path / one.finished) for one in made)
    (early / "pictures").mkdir()
    (early / "pictures" / f"{made[0].identity}.npz").write_text("of the earlier")
    merge([early], tmp_path / "into")
    merge([late], tmp_path / "into")
    (picture,) = (tmp_path / "into" / "pictures").iterdir()
    assert store.read(tmp_path / "into" / "records" / f"{picture.stem}.json").finished == "2026-01-01"
    merge([late, early], tmp_path / "at once")
    assert tree(tmp_path / "at once") == tree(tmp_path / "into")


def test_another_major_schema_is_refused_and_nothing_written(tmp_path: Path) -> None:
    here, there = (saved([record(*RUN)], tmp_path / name) for name in ("a", "b"))
    path = next((there / "records").iterdir())
    path.write_text(path.read_text().replace('"schema":2', '"schema":3'))
    with pytest.raises(UsageError, match=rf"{path} has schema 3; .*reads schemas 1, 2: merge with the version"):
        command.main([str(here), str(there), str(tmp_path / "into")])
    assert not (tmp_path / "into").exists()


def test_records_of_an_older_schema_stay_as_they_are(tmp_path: Path) -> None:
    old = Path(__file__).with_name("schema_1.json")
    name = f"{json.loads(old.read_text())['identity']}.json"
    (tmp_path / "old" / "records").mkdir(parents=True)
    (tmp_path / "old" / "records" / name).write_bytes(old.read_bytes())
    merge([tmp_path / "old"], tmp_path / "into")
    assert (tmp_path / "into" / "records" / name).read_bytes() == old.read_bytes()


def test_damaged_files_are_named_and_the_rest_is_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = saved([record(*RUN)], tmp_path / "run")
    (run / "records" / "broken.json").write_text("{")
    with pytest.raises(SystemExit, match="1"):
        command.main([str(run), str(tmp_path / "into")])
    said, errors = capsys.readouterr()
    assert errors.startswith("Left out: ") and "broken.json is damaged" in errors and "Left out" not in said
    assert f"1 record in {tmp_path / 'into'}, 1 of them new" in said and "not count" not in said
    assert len(contents(tmp_path / "into")) == 1
    with pytest.raises(UsageError, match=r"empty holds no record to merge"):
        command.main([str(tmp_path / "empty"), str(tmp_path / "into")])


def test_a_merged_folder_knows_what_is_missing(tmp_path: Path) -> None:
    """Of a plan that is done and of one that is not, which has a cell of its own."""
    done, half = record("relative", 64, 0, 1e-3), record("relative", 128, 0, 1e-3)
    a, b = saved([done], tmp_path / "a"), saved([done, half], tmp_path / "b")
    (a / "run.json").write_text(json.dumps({"cells": 1, "identities": [done.identity], "code": "made"}))
    (b / "run.json").write_text(json.dumps({"cells": 3, "code": "made"}))
    merge([a, b], tmp_path / "into")
    plan = store.read_plan(tmp_path / "into")
    assert plan is not None and plan.cells == 4
    assert plan.missing([done, half]) == 2 and plan.missing([half]) == 3
    assert plan.missing([done]) == 0, "the other plan has begun nothing here"
    merge([a], tmp_path / "copy")
    assert (tmp_path / "copy" / "run.json").read_text() == json.dumps(
        json.loads((a / "run.json").read_text()), indent=1
    ) + "\n"


def test_a_damaged_plan_is_found_before_anything_is_written(tmp_path: Path) -> None:
    a, b = (saved([record(*RUN)], tmp_path / name) for name in ("a", "b"))
    (b / "run.json").write_text("{")
    with pytest.raises(UsageError, match=r"b/run\.json is damaged"):
        command.main([str(a), str(b), str(tmp_path / "into")])
    assert not (tmp_path / "into").exists()


def test_ten_thousand_records_are_not_read_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work is one reading and one writing of each record: what is there is not written."""
    run = saved([record("relative", dim, 0, 1e-3) for dim in range(1, 101)], tmp_path / "run")
    written, read = [], []
    usual_write, usual_read = merging._write, store.read_encoded
    monkeypatch.setattr(merging, "_write", lambda *of: written.append(of) or usual_write(*of))
    monkeypatch.setattr(store, "read_encoded", lambda path: read.append(path) or usual_read(path))
    merge([run], tmp_path / "into")
    assert (len(written), len(read)) == (100, 100)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "into").rglob("*.json")}
    merge([run], tmp_path / "into")
    assert len(read) == 300
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "into").rglob("*.json")} == before
