"""Records on disk: one JSON file a cell, written whole or not at all, checked when it is read."""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from stepscale.bench.atomic import atomic_write
from stepscale.bench.errors import BadRecordError, OtherSchemaError, UsageError
from stepscale.bench.notes import one_line, printable
from stepscale.bench.records.operations import StepLog
from stepscale.bench.records.ranges import Size
from stepscale.bench.records.schema import MIGRATIONS, SCHEMA, Config, Record, Status

LOCAL = Path("results/local")  # where runs lie
RECORDS = "records"  # the folder in a run's
PLAN = "run.json"  # of a run's folder
REMARKS = "remarks.md"  # in a run's folder: what its maker has to say of it
LARGEST = 64 << 20  # bytes of a file that is read
LOGS = "operations"  # another: what is known of a step before it is timed, shared by the seeds


class Planned(msgspec.Struct):
    """What a run's folder says of its plan."""

    cells: Size
    parts: list[list[list[str]]] = []  # words of the cells that are known
    further: list[list[list[str]]] = []  # of seeds that are measured where something is undecided, and never missing
    identities: list[str] = []  # once the run was whole
    code: str = ""  # that measures them
    finished: bool = False  # as older versions said it, which counted
    merged: list[Planned] = []  # the plans of the folders that this one was merged of

    def missing(self, records: Collection[Record]) -> int:
        """Return how many of its cells are not among these records, as far as can be told."""
        if self.merged:
            return sum(self._missing_of(plan, records) for plan in self.merged)
        if self.identities:
            return len(set(self.identities) - {record.identity for record in records})
        extra = _seeds(self.further) - _seeds(self.parts)
        own = [record for record in records if self.finished or record.environment.code == self.code]
        return max(0, self.cells - len({_asked(record) for record in own if f"seed={record.cell.seed}" not in extra}))

    def _missing_of(self, plan: Planned, records: Collection[Record]) -> int:
        """Return how many cells of a merged plan are missing; none of one that has begun nothing of its own."""
        if plan.identities:
            return plan.missing(records)
        others = {identity for merged in self.merged for identity in merged.identities}
        own = [record for record in records if record.identity not in others]
        own = [record for record in own if plan.finished or record.environment.code == plan.code]
        return plan.missing(own) if own else 0


def _seeds(parts: list[list[list[str]]]) -> set[str]:
    return {word for part in parts for words in part for word in words if word.startswith("seed=")}


def _asked(record: Record) -> bytes:
    """Return what a record's cell was asked for: the same of all its records, whichever machines have left them."""
    return msgspec.json.encode([msgspec.structs.replace(record.cell, threads=1), rounded(record.config)])


def read_plan(run: Path) -> Planned | None:
    """Read the plan of a run's folder; None where there is none.

    Raises:
        BadRecordError: it is damaged; the message names the file.
    """
    path = run / PLAN
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(content(path).decode(), type=Planned)
    except (OSError, ValueError, RecursionError) as error:
        raise BadRecordError(f"{path} is damaged ({one_line(error)})") from error


def encode(record: Record) -> bytes:
    """Return a record as JSON, numbers to seven digits: more than any clock here resolves, and half the size.

    JSON has no NaN. Where a figure may be unknown it becomes null; where it must be known, the record says ``failed``.
    """
    plain = rounded(msgspec.to_builtins(record, enc_hook=_plain))
    try:
        msgspec.convert(plain, Record, strict=False)
    except msgspec.ValidationError as error:
        told = {"status": Status.FAILED, "reason": f"a figure is no finite number: {error}"}
        bare = {name: None for name in ("timing", "counts", "memory", "direction", "training", "data", "data_note")}
        plain = rounded(msgspec.to_builtins(msgspec.structs.replace(record, **told, **bare, notes={}), enc_hook=_plain))
    return json.dumps(plain, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _plain(value: object) -> object:
    """Return what JSON can hold in place of what a user's code has given: the number of NumPy's, else its text."""
    return value.item() if isinstance(value, np.generic) else str(value)


def rounded(value: object) -> object:
    """Round every number of plain data to seven digits; None in place of NaN and infinity."""
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value


def require_folder(path: Path) -> None:
    """See that there is a folder, or that one can be made.

    Raises:
        UsageError: a file has its place.
    """
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise UsageError(f"{path} can be no folder, as {place} is a file: name another, or remove the file")


def save(record: Record, run: Path) -> Path:
    """Write a record into a run's folder, as ``write`` does.

    Raises:
        OSError: it cannot be written; records already there are whole.
    """
    path = path_of(run, record.identity)
    write(encode(record), path)
    return path


def write(encoded: bytes, path: Path) -> None:
    """Write an encoded record, whole or not at all; one that is not settled never takes the place of one that is.

    Raises:
        OSError: it cannot be written; records already there are whole.
    """
    if path.exists() and not decode(encoded).settled and _settled(path):
        return
    try:
        with atomic_write(path) as file:
            file.write(encoded)
    except OSError as error:
        raise OSError(f"the record {path} cannot be written: {error}; records already there are whole") from error


def _settled(path: Path) -> bool:
    """Whether a file holds a whole record that is settled."""
    try:
        return read(path).settled
    except BadRecordError:
        return False


def path_of(run: Path, identity: str) -> Path:
    """Return where a cell's record lies in a run's folder."""
    return run / RECORDS / f"{identity}.json"


def name_beside(identity: str, encoded: bytes) -> str:
    """Return the name of a record whose cell has another one, which counts: its identity and a hash of its content."""
    return f"{identity}.{hashlib.sha256(encoded).hexdigest()[:16]}"


def read(path: Path) -> Record:
    """Read one record, of this schema or an older one.

    Raises:
        BadRecordError: naming the file and what is wrong with it.
    """
    return read_encoded(path)[0]


def read_encoded(path: Path) -> tuple[Record, bytes]:
    """Read one record, and return the bytes of its file too.

    Raises:
        BadRecordError: naming the file and what is wrong with it; because of an ``OtherSchemaError`` where it is that.
    """
    try:
        encoded = content(path)
        record = decode(encoded)
    except (OSError, ValueError, RecursionError) as error:
        kind = "OtherSchemaError" if isinstance(error, OtherSchemaError) else "ValueError"
        raise BadRecordError(f"{path} {one_line(error).removeprefix(f'{kind}: ')}") from error
    if path.stem not in (record.identity, name_beside(record.identity, encoded)):
        raise BadRecordError(f"{path} holds the record {printable(record.identity)}, of another name; delete the copy")
    return record, encoded


def content(path: Path) -> bytes:
    """Read a file of a run's folder.

    Raises:
        ValueError: it is no file, which may block whoever reads it, or larger than any that is written here.
        OSError: it cannot be read.
    """
    if not path.is_file():
        raise ValueError("is no file; remove it")
    if (size := path.stat().st_size) > LARGEST:
        raise ValueError(f"has {size >> 20} MiB, {LARGEST >> 20} are the most that a run's file has; remove it")
    return path.read_bytes()


def decode(encoded: bytes) -> Record:
    """Return a record from JSON, migrated to this schema where it is older.

    Raises:
        ValueError: it is no whole record; the message says what is wrong.
    """
    try:
        return msgspec.json.decode(encoded.decode(), type=Record)  # which sees bytes that msgspec skips
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _decode_other(encoded)


def save_log(log: StepLog, run: Path, name: str) -> None:
    """Write the log of a step into a run's folder.

    Raises:
        OSError: it cannot be written.
    """
    with atomic_write(log_path(run, name)) as file:
        file.write(msgspec.json.encode(log))


def read_log(path: Path) -> StepLog:
    """Read the log of a step.

    Raises:
        BadRecordError: naming the file and what is wrong with it.
    """
    try:
        return msgspec.json.decode(content(path).decode(), type=StepLog)
    except (OSError, ValueError, RecursionError) as error:
        raise BadRecordError(f"{path} is damaged ({one_line(error)})") from error


def log_path(run: Path, name: str) -> Path:
    """Return where the log of a step lies in a run's folder."""
    return run / LOGS / f"{name}.json"


def read_pictures(path: Path) -> dict[str, np.ndarray]:
    """Read what a training run left to be shown.

    Raises:
        BadRecordError: naming the file and what is wrong with it.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content(path))) as archive:
            if (size := sum(entry.file_size for entry in archive.infolist())) > LARGEST:
                raise ValueError(f"it unpacks to {size >> 20} MiB, {LARGEST >> 20} are the most")
        with np.load(path, allow_pickle=False) as arrays:
            found = dict(arrays)
        check_pictures(found)
    except Exception as error:  # whatever a damaged archive has NumPy raise
        raise BadRecordError(f"{path} cannot be shown ({one_line(error)}); remove it") from error
    return found


def check_pictures(arrays: dict[str, np.ndarray]) -> None:
    """See that arrays are images ``[n, height, width]`` or points ``[n, 2]``, all finite, and a density over the plane.

    Raises:
        ValueError: they are not.
    """
    shown = {name: arrays[name] for name in ("data", "samples", "filters") if name in arrays}
    shape = shown["data"].shape[1:] if "data" in shown else ()
    if len(shape) not in (1, 2) or (len(shape) == 1 and shape != (2,)):
        raise ValueError("its data are neither images nor points of the plane")
    for name, values in shown.items():
        empty = not len(values) and name != "data"
        if (
            values.dtype.kind != "f"
            or values.shape[1:] != shape
            or not (empty or (np.isfinite(values).all() and values.size))
        ):
            raise ValueError(f"its {name} are not as its data are, or not finite")
    if "contour" in arrays:
        contour = arrays["contour"]
        if len(shape) > 1 or contour.shape != (3, 2) or contour.dtype.kind != "f" or not np.isfinite(contour).all():
            raise ValueError("its contour is no mean and covariance in the plane")
    if "log_density" in arrays:
        density, extent = arrays["log_density"], arrays.get("extent", np.empty(0))
        if density.ndim != 2 or density.dtype.kind != "f" or extent.shape != (4,) or not np.isfinite(extent).all():
            raise ValueError("its density is none over a rectangle")


def read_all(run: Path) -> tuple[list[Record], list[str]]:
    """Return a run's whole records, and what is wrong with the others.

    Parts that are equal in many records are in memory once.
    """
    records: list[Record] = []
    complaints: list[str] = []
    shared: dict[bytes, Any] = {}
    encode = msgspec.json.encode
    for path in sorted((run / RECORDS).glob("*.json")):
        try:
            record = read(path)
        except BadRecordError as error:
            complaints.append(str(error))
            continue
        record.config = {name: shared.setdefault(encode(part), part) for name, part in record.config.items()}
        if record.counts is not None:
            record.counts.kinds = shared.setdefault(encode(record.counts.kinds), record.counts.kinds)
        records.append(record)
    return records, complaints


def _decode_other(encoded: bytes) -> Record:
    """Decode what is no record of this schema: an older one, which may hold NaN, or something else.

    Half a surrogate pair, which JSON can say and no file can hold, is replaced.
    """
    try:
        found = json.loads(encoded.decode("utf-8-sig"), parse_constant=lambda name: None)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is damaged ({one_line(error)}); delete it and run again to measure the cell anew") from error
    schema = found.get("schema") if isinstance(found, dict) else None
    if not isinstance(schema, int) or schema not in (*MIGRATIONS, SCHEMA):
        known = f"this version of stepscale reads schemas {_readable()}"
        raise OtherSchemaError(f"has schema {printable(repr(schema))}; {known}")
    try:
        plain = json.dumps(_migrated(found), ensure_ascii=False).encode(errors="replace")
        return msgspec.json.decode(plain, type=Record)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"is no whole record: {printable(str(error))}; delete it and run again to measure the cell anew"
        ) from error


def _migrated(record: Config) -> Config:
    while record["schema"] != SCHEMA:
        record = MIGRATIONS[record["schema"]](record)
    return record


def _readable() -> str:
    return ", ".join(map(str, [*MIGRATIONS, SCHEMA]))
