from pathlib import Path

import pytest

from stepscale.bench import records, tables
from tests.synthetic import failed, record


def test_a_record_survives_saving_and_loading(tmp_path: Path) -> None:
    made = record("relative", 64, 0, 2e-3)
    path = records.save(made, tmp_path)
    got, expected = tables.row(records.read(path)), tables.row(made)
    assert got.pop("phases_ms") == pytest.approx(expected.pop("phases_ms"))
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value)
    assert records.read(path)["environment"] == made["environment"]
    assert list(tmp_path.iterdir()) == [path], "no partial file stays"


def test_an_unknown_status_is_refused(tmp_path: Path) -> None:
    path = records.save(failed("naive", 64, 0, "tired"), tmp_path)
    with pytest.raises(records.BadRecordError, match="status 'tired'"):
        records.read(path)


def test_identity_depends_on_every_fact() -> None:
    facts = [{"dim": 1}, {"a": 1}, "code", "torch"]
    base = records.identity(*facts)
    for k, other in enumerate([{"dim": 2}, {"a": 2}, "code2", "torch2"]):
        assert records.identity(*[other if i == k else fact for i, fact in enumerate(facts)]) != base
    assert records.identity(*facts) == base


def test_a_full_disk_leaves_no_half_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, text: str) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    kept = records.save(record("relative", 64, 0, 2e-3), tmp_path)
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=r"cannot be written.*No space left.*already there are whole"):
        records.save(record("relative", 128, 0, 2e-3), tmp_path)
    assert list(tmp_path.iterdir()) == [kept]
