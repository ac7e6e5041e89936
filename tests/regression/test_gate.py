"""The gate from the outside: two versions built from git, run in turns, judged, written down; and what goes wrong."""

import json
import math
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest
import torch
from filelock import FileLock, Timeout

from stepscale.bench.cli import gate_check
from stepscale.bench.cli.regress import main, parse
from stepscale.bench.config import CONF
from stepscale.bench.errors import UsageError
from stepscale.bench.regression import builds, gate, self_check, sessions, verdicts
from stepscale.bench.regression.benchmarks.messages import Timings
from stepscale.bench.regression.benchmarks.test_steps import workload_of
from stepscale.bench.regression.builds import Arm, BuildError
from stepscale.bench.regression.sessions import SessionError

ROOT = Path(__file__).parents[2]
OUTPUTS = {"regress.json", "regress.md", "rounds.csv"}


def git(folder: Path, *words: str) -> None:
    who = [f"GIT_{role}_{what}=someone" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")]
    environment = os.environ | dict(entry.split("=") for entry in who)
    subprocess.run(["git", *words], cwd=folder, env=environment, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a repository of this very tree, with one commit on main, and go there."""
    folder = tmp_path / "checkout"
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in names.stdout.split("\n"):
        if name and not name.startswith("results/") and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    git(folder, "init", "-q", "-b", "main")
    commit(folder, "all there is")
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # or pytest-benchmark measures nothing in the sessions
    monkeypatch.chdir(folder)
    return folder


def commit(folder: Path, message: str) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", message)


# a step three times as slow, whatever it does
SLOWED = """
import time

_call = Paired.__call__


def _slowed(self, batch, mark=no_mark):
    began = time.perf_counter()
    _call(self, batch, mark)
    until = 3 * time.perf_counter() - 2 * began
    while time.perf_counter() < until:
        pass


Paired.__call__ = _slowed
"""


def regress(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(words))
    return int(end.value.code or 0)


def test_a_ref_and_a_changed_checkout_are_built_apart(checkout: Path, tmp_path: Path) -> None:
    with open(checkout / "optimizers" / "__init__.py", "a") as file:
        file.write("CHANGED = True\n")
    (checkout / "optimizers" / "new.py").write_text("")
    (checkout / "optimizers" / "core" / "step.py").unlink()
    base, head = builds.build("HEAD", tmp_path / "base"), builds.build(None, tmp_path / "head")
    assert head.label == f"{base.label}+changes"
    files = [{path.name for path in (arm.package / "stepscale" / "optimizers").rglob("*.py")} for arm in (base, head)]
    assert files[1] - files[0] == {"new.py"}
    assert files[0] - files[1] == {"step.py"}
    initial = [(arm.package / "stepscale" / "optimizers" / "__init__.py").read_text() for arm in (base, head)]
    assert ["CHANGED" in text for text in initial] == [False, True]
    assert not (checkout / "build").exists(), "nothing is left in the checkout"


def test_the_base_is_by_default_where_the_checkout_left_main(checkout: Path) -> None:
    left = builds.git("rev-parse", "HEAD")
    git(checkout, "checkout", "-q", "-b", "work")
    (checkout / "more").write_text("")
    commit(checkout, "more")
    assert builds.merge_base() == left
    git(checkout, "branch", "-m", "main", "trunk")
    with pytest.raises(BuildError, match=r"no branch main.*BASE=HEAD~1"):
        builds.merge_base()


def test_an_unknown_ref_and_a_base_that_does_not_build_are_errors(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert regress("nowhere") == 2
    assert "there is no commit 'nowhere' here" in capsys.readouterr().err
    (checkout / "pyproject.toml").write_text("[project]\nname = 3\n")
    commit(checkout, "break it")
    assert regress("HEAD") == 2
    said = capsys.readouterr().err
    assert "does not build" in said and "name" in said


def test_two_versions_are_run_in_turns_and_judged(
    checkout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step three times as slow, and a benchmark that base lacks."""
    monkeypatch.setattr(sessions, "CONTENDED", math.inf)  # whatever else this machine does
    step = checkout / "optimizers" / "core" / "step.py"
    step.write_text(step.read_text() + SLOWED)
    folder = checkout / "bench" / "conf" / "optimizer"
    (folder / "newest.yaml").write_text((folder / "relative.yaml").read_text())
    assert regress("HEAD", "--optimizers=relative,newest", "--dims=8") == 1
    out = checkout / gate.Options.out
    assert {path.name for path in out.iterdir()} == OUTPUTS
    facts = json.loads((out / "regress.json").read_text())
    assert facts["head"] == facts["base"] + "+changes"
    assert [(row["optimizer"], row["verdict"]) for row in facts["rows"]] == [
        ("newest", "new"),
        ("relative", "regressed"),
    ]
    rounds = pd.read_csv(out / "rounds.csv").query("optimizer == 'relative'")
    assert set(rounds["session"]) == {*verdicts.BASE, *verdicts.HEAD}
    assert rounds.groupby("session")["round"].nunique().nunique() == 1, "all sessions ran the same rounds"
    assert "1 regressed: relative-8." in (out / "regress.md").read_text()
    assert "1 regressed: relative-8. 1 new: newest-8." in capsys.readouterr().out


def test_an_empty_selection_or_one_that_does_not_apply_measures_nothing_and_a_misspelt_name_is_an_error(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert regress("HEAD", "--optimizers=unheard_of", "--dims=8") == 3
    assert "Nothing was measured. Optimizers there are: adam, ekfac" in capsys.readouterr().out
    assert regress("HEAD", "model=classifier", "--optimizers=naive", "--dims=8") == 3
    assert "- not applicable: naive-8: TypeError: the jacobian direction needs" in capsys.readouterr().out
    assert regress("HEAD", "--optimizers=relative, unheard_of") == 2
    assert "no optimizer unheard_of; there are adam, ekfac" in capsys.readouterr().err
    assert "unheard_of" in json.loads((checkout / gate.Options.out / "regress.json").read_text())["reason"]


def test_what_is_compared_where_nobody_says() -> None:
    """The default sweep's optimizers, which are few; of a user's own repository all of theirs."""
    known = {"relative", "kfac", "mine"}
    assert gate.chosen(gate.Options(), known) == ("relative", "kfac")
    assert gate.chosen(gate.Options(optimizers=("all",)), known) == ()
    assert gate.chosen(gate.Options(optimizers=("mine",)), known) == ("mine",)
    assert gate.chosen(gate.Options(conf=Path("conf")), known) == ()
    assert set(gate.USUAL) <= {path.stem for path in (CONF / "optimizer").glob("*.yaml")}


@pytest.mark.slow
def test_a_head_that_cannot_be_imported_is_an_error(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = checkout / "optimizers" / "relative" / "relative.py"
    broken.write_text("from stepscale.optimizers.core.step import nothing\n")
    assert regress("HEAD", "--optimizers=relative", "--dims=8") == 2
    assert "cannot import name 'nothing'" in capsys.readouterr().err
    assert not (checkout / gate.Options.out / "rounds.csv").exists(), "no earlier comparison passes for this one"


def test_a_benchmark_that_fails_on_head_is_an_error(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = checkout / "bench" / "conf" / "optimizer"
    (folder / "relative.yaml").write_text((folder / "relative.yaml").read_text().replace("plain", "plainest"))
    assert regress("HEAD", "--optimizers=relative", "--dims=8") == 2
    said = capsys.readouterr().out
    assert "1 failed: relative-8" in said and "plainest" in said
    assert "hold the same code" not in said, "a configuration is what is measured, too"


REFUSED = "TypeError: the jacobian direction needs base_log_prob()"


@pytest.mark.parametrize(
    ("failed", "inapplicable", "statuses"),  # where another benchmark regressed, and where none did
    [
        (dict.fromkeys(["A1", "A2", "B1", "B2"], REFUSED), ["naive-8"], (1, 0)),
        (dict.fromkeys(["B1", "B2"], REFUSED), [], (1, 2)),
        (dict.fromkeys(["A1", "A2", "B1", "B2"], "ValueError: no such file"), [], (1, 2)),
        (dict.fromkeys(["A1", "A2"], REFUSED), [], (1, 0)),
    ],
)
def test_what_neither_version_applies_to_is_no_failure_and_none_hides_a_regression(
    failed: dict[str, str], inapplicable: list[str], statuses: tuple[int, int]
) -> None:
    told = {name: {"naive-8": failed[name]} if name in failed else {} for name in (*verdicts.BASE, *verdicts.HEAD)}
    rest, found = gate.told_apart(told)
    assert list(found) == inapplicable and list(rest) == ([] if inapplicable else list(failed))
    tables = [comparisons(self_check.Case(False, 0, "", 0), 1.0, other) for other in (1.3, 1.0)]
    measured = gate.NOTHING._replace(failed=rest, inapplicable=found)
    assert tuple(gate.exit_status(table, measured) for table in tables) == statuses


def test_the_machine_is_held_while_it_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = list[str]()

    def measure(*asked: object) -> gate.Measured:
        (lock,) = tmp_path.glob("stepscale-*.lock")
        with pytest.raises(Timeout):
            FileLock(lock, timeout=0).acquire()
        found.append(lock.with_suffix(".owner").read_text())
        return gate.NOTHING

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(gate, "measure", measure)
    monkeypatch.setattr(self_check, "cases", lambda: [self_check.Case(False, 0, "", 0)])
    arms = [Arm(name, tmp_path, tmp_path, tmp_path) for name in ("older", "newer")]
    monkeypatch.setattr(builds, "build", lambda ref, into: arms[into.name == "head"])
    gate.measure_alone(arms[0], arms[1], gate.Options(), print)
    self_check.check(tmp_path / "out", print)
    assert found[0].endswith("comparing newer with older") and found[1].endswith("checking the regression gate")


def test_interrupted_it_keeps_what_all_sessions_have_finished() -> None:
    class Told:
        def __init__(self, name: str, *tests: str) -> None:
            info = Timings("o", 8, limit_s=1.0, first_round=2, step_s=[1.0, 2.0])
            self.name, self.found = name, dict.fromkeys(tests, info)

    class Watched:
        contended: ClassVar = {("x", 3)}

    sessions = [Told("A1", "x", "y"), Told("B1", "x")]
    rows = gate.rows_of(sessions, Watched(), whole_only=True)  # type: ignore[arg-type]
    assert [(row["session"], row["round"], row["contended"]) for row in rows] == [
        ("A1", 2, False), ("A1", 3, True), ("B1", 2, False), ("B1", 3, True),
    ]  # fmt: skip
    assert len(gate.rows_of(sessions, Watched(), whole_only=False)) == 6  # type: ignore[arg-type]


OWN = """
_target_: stepscale.optimizers.pair
_partial_: true
direction: {_target_: stepscale.optimizers.Layerwise, _partial_: true}
update: {_target_: own_optimizer.SignDescent, _partial_: true, lr: 1e-4}
"""


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a user's repository, of an optimizer and its YAML, with one commit on main, and go there."""
    folder = tmp_path / "theirs"
    (folder / "conf" / "optimizer").mkdir(parents=True)
    (folder / "conf" / "optimizer" / "sign_descent.yaml").write_text(OWN)
    shutil.copy2(ROOT / "tests" / "examples" / "own_optimizer.py", folder)
    git(folder, "init", "-q", "-b", "main")
    commit(folder, "an optimizer")
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.setattr(sessions, "CONTENDED", math.inf)
    monkeypatch.chdir(folder)
    return folder


def test_optimizers_of_a_users_own_repository_are_compared(theirs: Path) -> None:
    """Slowed down in the checkout, which the base does not see though the current folder comes first for Python."""
    own = theirs / "own_optimizer.py"
    slow = "    def step(self, closure: None = None) -> None:\n"
    own.write_text(own.read_text().replace(slow, slow + "        torch.linalg.eigvalsh(torch.ones(300, 300))\n"))
    assert regress("model=autoencoder", "HEAD", "--config-dir=conf", "--dims=16", "depth=4") == 1
    facts = json.loads((theirs / gate.Options.out / "regress.json").read_text())
    assert [(row["optimizer"], row["verdict"]) for row in facts["rows"]] == [("sign_descent", "regressed")]
    assert facts["optimizers"] == ["sign_descent"] and facts["head"] == facts["base"] + "+changes"
    assert len(set(facts["code"].values())) == 2


def test_a_users_folder_has_to_be_in_their_repository(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("nowhere", str(ROOT / "bench" / "conf")):
        assert regress("HEAD", f"--config-dir={folder}") == 2
        assert folder in capsys.readouterr().err
    assert regress("HEAD", "other", "--config-dir=conf") == 2
    assert "got HEAD, other" in capsys.readouterr().err


def test_a_session_with_another_versions_files_is_an_error(tmp_path: Path) -> None:
    class Told:
        name, files = "B1", [str(tmp_path / "base" / "package" / "stepscale" / "models" / "__init__.py")]

    folders = {name: (tmp_path / name / "source", tmp_path / name / "package") for name in ("base", "head")}
    base, head = (Arm(name, *found, conf=tmp_path) for name, found in folders.items())
    with pytest.raises(SessionError, match=r"B1 imported .*base.*, not the files of .*head"):
        gate.require_own_files([Told()], base, head)  # type: ignore[list-item]
    with pytest.raises(SessionError, match="base and head are the same files"):
        gate.require_own_files([], base, base)


@pytest.mark.parametrize("words", [["--dims=8,x"], ["--threads=0"], ["--dims=0"]])
def test_wrong_words_are_named(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert regress(*words) == 2
    assert words[0].split("=")[1] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "remedy"),
    [
        ("optimizer=kfac", "--optimizers"),
        ("dim=16", "--dims"),
        ("threads=2", "--threads"),
        ("device=cpu", "CUDA_VISIBLE_DEVICES"),
        ("timing=quick", "timing.compile"),
        ("timing.precision=0.1", "timing.compile"),
        ("training.max_steps=3", "stepscale key=value"),
        ("task=train", "stepscale key=value"),
    ],
)
def test_a_setting_that_no_benchmark_reads_is_refused(
    word: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert regress(word) == 2
    said = capsys.readouterr().err
    assert f"{word} has no say here" in said and remedy in said


@pytest.mark.parametrize("flush", [True, False])
def test_a_benchmark_is_of_the_numbers_and_the_compilation_that_words_ask_for(
    flush: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = list[str]()
    monkeypatch.setattr(torch, "compile", lambda step, mode: modes.append(mode) or step)
    monkeypatch.setattr("stepscale.bench.timing.workload._quieten", lambda: None)
    words = ("dtype=bfloat16", "timing.compile=max-autotune", f"flush_denormal={flush}", "model=classifier")
    asked = parse([*words]).words
    try:
        workload = workload_of(["optimizer=layerwise", "dim=8", "batch=4", *asked], lambda step: step)
        assert (torch.tensor(1e-40) * 1 == 0) == flush
    finally:
        torch.set_flush_denormal(False)
    assert modes == ["max-autotune"]
    rows, labels = workload.batches[0]
    assert {rows.dtype, *(weight.dtype for weight in workload.model.parameters())} == {torch.bfloat16}
    assert labels.dtype == torch.int64


def comparisons(case: self_check.Case, *ratios: float) -> pd.DataFrame:
    measured = {"base_ms": 1.0, "head_ms": 1.0, "se": 0.01, "floor": 0.01, "rounds": 50, "contended": 3}
    rows = [measured | {"ratio": ratio, "waited_s": 2.0, "commit": "c"} for ratio in ratios]
    return verdicts.judge(pd.DataFrame(rows)).assign(optimizer="o", dim=8, **case._asdict())


def test_the_checks_table_marks_what_is_missed() -> None:
    quiet, beside = (self_check.Case(neighbour, 0, "", 0) for neighbour in (False, True))
    found = self_check.Case(False, 5, "update", 0)
    good = pd.concat([comparisons(quiet, *[1.0] * 100), comparisons(found, 1.06, 1.06, 1.0), comparisons(beside, 1.0)])
    assert self_check.MISSED not in self_check.summary(good)
    for worse in (comparisons(beside, 1.2), comparisons(quiet, 1.2, 1.2), comparisons(found, 1.0, 1.0)):
        assert self_check.summary(pd.concat([good, worse])).count(self_check.MISSED) == 1


def status_of_check() -> int:
    try:
        gate_check.main([])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def died(base: Arm, head: Arm, case: self_check.Case) -> pd.DataFrame:
    raise SessionError("session B1 ended with status -9")


def test_the_check_goes_on_where_it_was_stopped(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[self_check.Case] = []

    def compare(base: Arm, head: Arm, case: self_check.Case) -> pd.DataFrame:
        if len(made) == 2:
            made.append(case)
            raise KeyboardInterrupt
        made.append(case)
        assert head.options == ((f"--slow={case.place}={case.percent / 100}",) if case.percent else ())
        assert base.options == () and base.package != head.package
        gate.require_own_files([], base, head)
        return comparisons(case, 1.3 if case.percent else 1.0).drop(columns=["commit", *case._fields])

    monkeypatch.setattr(self_check, "compare", compare)
    written = checkout / self_check.OUT / "README.md"
    assert status_of_check() == 130
    assert "goes on from here" in capsys.readouterr().err and "commit" in written.read_text()
    written.write_text("the earlier page")
    with monkeypatch.context() as broken:
        broken.setattr(self_check, "compare", died)
        assert status_of_check() == 2 and written.read_text() == "the earlier page", "nothing new was measured"
    assert status_of_check() == 0
    assert sorted(made[:2] + made[3:]) == sorted(self_check.cases()), "each once, but for the interrupted one"
    assert "commit" in written.read_text()
    (checkout / "optimizers" / "core" / "step.py").write_text("")
    with pytest.raises(UsageError, match="remove it"):
        gate_check.main([])


@pytest.mark.parametrize("commit", ["123456789012", "000000000012", "12e456789012"])
def test_a_commit_that_reads_as_a_number_is_found_again(commit: str, tmp_path: Path) -> None:
    path = tmp_path / "comparisons.csv"
    comparisons(self_check.Case(False, 0, "update", 0), 1.0).assign(commit=commit).to_csv(path, index=False)
    assert set(self_check.read(path)["commit"]) == {commit}


def test_a_comparison_without_a_ratio_is_undecided_on_the_page(tmp_path: Path) -> None:
    without = comparisons(self_check.Case(False, 0, "", 0), 1.0, math.nan)
    without.assign(se=without["se"].where(without["ratio"].notna())).to_csv(tmp_path / "comparisons.csv", index=False)
    judged = verdicts.judge(self_check.read(tmp_path / "comparisons.csv"))
    assert list(judged["verdict"]) == ["unchanged", "undecided"]
    assert self_check.summary(judged).count("none (A/A)") == 1


def test_a_benchmark_that_fails_ends_the_check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failed = gate.NOTHING._replace(failed={"B1": {"relative-96": "ValueError: no"}})
    monkeypatch.setattr(gate, "measure", lambda *asked: failed)
    arm = Arm("c", tmp_path, tmp_path, tmp_path)
    with pytest.raises(SessionError, match=r"relative-96 failed in session B1: ValueError: no"):
        self_check.compare(arm, arm, self_check.Case(False, 0, "", 0))


@pytest.mark.slow
def test_a_slow_down_that_the_check_asks_for_is_found(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Base and head are the same code; a step that pairs nothing is slowed like any other."""
    monkeypatch.setattr(sessions, "CONTENDED", math.inf)  # whatever else this machine does
    base, head = (builds.build(None, tmp_path / name) for name in ("base", "head"))
    options = gate.Options(optimizers=("relative", "relative_fused"), dims=("8",))
    slow = self_check.slowed(head, self_check.Case(False, 200, "update", 0))
    measured = gate.measure(base, slow, options, lambda done, of: None)
    assert not measured.failed and len(set(measured.code.values())) == 1
    judged = verdicts.compare(measured.rounds).set_index("optimizer")["verdict"]
    assert judged.to_dict() == {"relative": "regressed", "relative_fused": "regressed"}


def test_the_checks_cases_are_enough() -> None:
    cases = self_check.cases()
    assert len(set(cases)) == len(cases)
    made = pd.DataFrame(cases).groupby(["neighbour", "percent", "place"]).size() * 2 * len(gate.USUAL)
    assert (made >= 40).all()
    assert made[False, 0, ""] >= 100 and made[True, 0, ""] >= 100
