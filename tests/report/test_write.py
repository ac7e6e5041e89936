"""Reports of synthetic runs: words, files, and figures that hold only what the records hold."""

import builtins
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from msgspec.structs import replace

from stepscale.bench.analysis import step_times
from stepscale.bench.cli import report
from stepscale.bench.errors import UsageError
from stepscale.bench.records import store, tables
from stepscale.bench.records.schema import Machine, OnGpu
from stepscale.bench.report import scaling_figures, scaling_section, scaling_tables, style, write
from stepscale.bench.report.training import figures
from tests.support.synthetic import DIMS, failed, polynomial, record, run_of
from tests.support.training import train_record

COSTS = {
    "layerwise": polynomial(60, 0, 2e-2, 6e-5),
    "relative": polynomial(200, 0, 2e-2),
    "naive": lambda d: 1e-3 * d**2,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = run_of(tmp_path_factory.mktemp("run"), COSTS, DIMS)
    run_of(folder, {name: COSTS[name] for name in ("layerwise", "relative")}, [128, 256, 512], batch=10)
    for dim, status in ((2048, "out_of_memory"), (4096, "too_slow")):
        store.save(failed("naive", dim, 0, status), folder)
    write.write(folder)
    return folder


def test_every_file_is_there(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert {
        "times.csv",
        "scaling.csv",
        "factors.csv",
        "shares.csv",
        "summary.md",
        "scaling.png",
        "scaling.svg",
        "report.html",
    } <= names


def test_the_answer_comes_first_then_findings_that_are_the_truth(run: Path) -> None:
    summary = (run / "summary.md").read_text()
    assert summary.index("| optimizer") < summary.index("## Findings") < summary.index("## Words")
    overtaken = re.search(r"`relative` overtakes `layerwise` between dim (\d+) and (\d+), batch 100", summary)
    assert overtaken, summary
    truth = (140 / 6e-5) ** (1 / 3)
    assert int(overtaken[1]) < truth < int(overtaken[2])
    assert "1 of 68 cells: out_of_memory." in summary
    assert "- **layerwise**: the honest baseline" in summary
    assert len(summary.splitlines()) < 120


def test_records_without_timed_operations_are_not_counted(run: Path) -> None:
    """As those of older versions."""
    summary = (run / "summary.md").read_text()
    assert "**Not counted**, batch 100: `layerwise`, `naive`, `relative`." in summary
    assert not (run / "orders.png").exists()


def test_the_page_needs_no_other_file(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert not re.search(r"(src|href)=\"(?!#)", page.replace("xlink:href", "href").replace('href="#', 'href-id="#'))
    assert page.count("<script") == 1 and "@import" not in page and "url(http" not in page
    assert page.count("<svg") == page.count('role="img" aria-label="') == 2, "one figure a group"
    assert page.index("<table") < page.index("<svg") < page.index("overtakes")


def test_factors_are_over_both_baselines(run: Path) -> None:
    found = pd.read_csv(run / "factors.csv").set_index(["batch", "dim", "optimizer", "baseline"])["factor"]
    truth = COSTS["layerwise"](1024) / COSTS["relative"](1024)
    assert found[100, 1024, "relative", "layerwise"] == pytest.approx(truth, rel=0.03)
    assert found[100, 1024, "relative", "naive"] > 10
    assert (10, 512, "relative", "naive") not in found.index
    shown = scaling_tables.factors_table(pd.read_csv(run / "factors.csv"))
    (cell,) = shown[(shown["dim"] == 1024) & (shown["baseline"] == "layerwise")]["relative"]
    assert cell.key == pytest.approx(truth, rel=0.03) and float(cell.text.split(" ")[0]) == pytest.approx(
        truth, rel=0.03
    )


def test_configurations_are_never_mixed_in_a_table(tmp_path: Path) -> None:
    for depth, seconds in ((2, 1e-3), (8, 9e-3)):
        run_of(tmp_path, {"mine": lambda d, s=seconds: s}, [64], depth=depth)
    table = scaling_tables.phases(tables.load(tmp_path)).set_index("depth")
    assert table["gradient"].to_dict() == pytest.approx({2: 0.9, 8: 8.1}, rel=0.02)


def test_what_failed_is_told(run: Path) -> None:
    shown = scaling_tables.overview(step_times.times(tables.load(run)), tables.load(run)).set_index(["batch", "dim"])
    assert shown.loc[(100, 2048), "naive"] == "out of memory"
    assert "1 of 68 cells: out_of_memory." in write.write(run)


def test_baselines_are_found_under_changed_names(tmp_path: Path) -> None:
    costs = {f"{name}[update.lr=1e-3]": cost for name, cost in COSTS.items()}
    words = write.write(run_of(tmp_path, costs, DIMS))
    assert re.search(r"`relative\[update.lr=1e-3\]` overtakes `layerwise\[update.lr=1e-3\]`", words)


def panels(run: Path) -> Figure:
    cells = tables.load(run)
    cells = cells[cells["batch"] == 100]
    times, slopes = step_times.times(cells), step_times.local_slopes(cells)
    return scaling_figures.scaling_figure(times, slopes, style.styles(times["optimizer"]), "title")


def test_no_curve_holds_a_number_that_was_not_measured(run: Path) -> None:
    """A failed cell is a cross on the edge, never a point of a curve."""
    axes = panels(run).axes[0]
    curves = {line.get_label(): line for line in axes.get_lines() if not str(line.get_label()).startswith("_")}
    assert set(curves) == set(COSTS)
    for name, line in curves.items():
        dims, values = line.get_xdata(), line.get_ydata()
        assert list(dims) == DIMS
        np.testing.assert_allclose(values, [1e3 * COSTS[name](d) for d in DIMS], rtol=0.03)
    crosses = [line for line in axes.get_lines() if line.get_marker() == "X"]
    assert [list(line.get_xdata()) for line in crosses] == [[2048, 4096]]
    assert any("out of memory" in text.get_text() for text in axes.texts)


def test_cells_that_wait_for_the_host_are_hollow(tmp_path: Path) -> None:
    run_of(tmp_path, {"relative": COSTS["relative"]}, DIMS)
    late = record("relative", 32, 0, 1e-3)
    late.timing.gpu = OnGpu(busy_s=1e-4)
    store.save(late, tmp_path)
    hollow = [line for line in panels(tmp_path).axes[0].get_lines() if line.get_markerfacecolor() == "white"]
    assert [list(line.get_xdata()) for line in hollow] == [[32]]


def test_names_at_ends_that_lie_beside_each_other_do_not_overlap(tmp_path: Path) -> None:
    """Of curves that end at neighbouring dims at one height the first one's name would run into the other's."""
    run_of(tmp_path, {"another": lambda d: 1.01e-3}, [64, 256, 1024])
    run_of(tmp_path, {"relative": lambda d: 1e-3}, [64, 256, 1000])
    figure = panels(tmp_path)
    figure.draw_without_rendering()
    names = [text for text in figure.axes[0].texts if text.get_text() in ("relative", "another")]
    first, second = (text.get_window_extent() for text in names)
    assert not first.overlaps(second)


def test_of_cells_of_which_no_kernel_was_seen_it_is_said_that_they_may_wait(tmp_path: Path) -> None:
    run_of(tmp_path, {"relative": COSTS["relative"], "layerwise": COSTS["layerwise"]}, DIMS)
    for path in (tmp_path / "records").glob("*.json"):
        unknown = store.read(path)
        unknown.timing.gpu = OnGpu(busy_s=None)
        store.save(unknown, tmp_path)
    cells = tables.load(tmp_path)
    assert cells["launch_bound"].isna().all()
    judged = scaling_tables.judge(cells)
    said = "\n".join(scaling_section.section(judged, str).findings)
    assert f"Of {len(cells)} of {len(cells)} cells it is not known whether they wait for the host" in said
    assert len(step_times.local_slopes(cells)), "they are judged"
    drawn = [line for line in panels(tmp_path).axes[0].get_lines() if len(line.get_xdata())]
    assert not any(line.get_markerfacecolor() == "white" for line in drawn)


def test_looks_are_distinct_and_follow_the_name() -> None:
    names = [f"optimizer{k:02d}" for k in range(24)]
    looks = style.styles(names)
    assert len({(look["color"], look["marker"], look["linestyle"]) for look in looks.values()}) == 24
    assert style.styles(reversed(names)) == looks


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_single_cell_makes_a_report(tmp_path: Path, seeds: int) -> None:
    run_of(tmp_path, {"mine": COSTS["relative"]}, [64], seeds=seeds)
    words = write.write(tmp_path)
    assert words.count("All cells are of one dim") == 1 and "undecided" not in words
    assert ("One process a cell" in words) == (seeds == 1)


def test_a_run_of_failures_makes_a_report(tmp_path: Path) -> None:
    store.save(failed("naive", 64, 0, "out_of_memory"), tmp_path)
    assert "1 of 1 cells: out_of_memory" in write.write(tmp_path)


def test_without_two_dims_the_plots_keep_their_axis(tmp_path: Path) -> None:
    run_of(tmp_path, {"relative": COSTS["relative"]}, [16])
    write.write(tmp_path)
    svg = (tmp_path / "scaling.svg").read_text()
    assert svg.count(">16<") == 3, "a tick in each panel: time, memory, step / limit"
    assert ">d³<" not in svg, "guides of no length"


def test_a_run_of_two_machines_names_both(tmp_path: Path) -> None:
    """As of one resumed on a machine lent anew."""
    for seed, gpu in enumerate(("H100", "H200", "H200")):
        made = record("relative", 64, seed, 1e-3)
        made.machine = Machine(cpu="simulated", cores=2, gpu=gpu, gpus=1)
        store.save(made, tmp_path)
    where = write.provenance(store.read_all(tmp_path)[0])
    assert where.count("H100, simulated, 2 cores, 2 threads, torch 0") == 1
    assert where.count("H200, simulated") == 1


def test_a_run_names_the_command_and_the_versions_that_make_it_again(tmp_path: Path) -> None:
    for seed in range(5):
        made = record("relative", 64, seed, 1e-3)
        made.command = f"stepscale seed={max(seed, 1)}"
        commit = "abc1234" if seed else None  # as of one measured before the last files were committed
        made.environment = replace(made.environment, numpy="2.0.1", hydra_core="1.3.2", commit=commit)
        store.save(made, tmp_path)
    write.write(tmp_path)
    summary = (tmp_path / "summary.md").read_text()
    assert "(abc1234)" in summary and "; and " not in summary, "it is one code"
    assert re.search(r", made by: (stepscale seed=\d; ){3}… \(with numpy 2.0.1, hydra-core 1.3.2\)", summary)
    assert "made by" not in (tmp_path / "scaling.svg").read_text(), "a figure's title is one line"


def test_a_hostile_name_stays_text(tmp_path: Path) -> None:
    run_of(tmp_path, {"<b>x</b>": COSTS["relative"]}, DIMS)
    write.write(tmp_path)
    assert "<b>x</b>" not in (tmp_path / "report.html").read_text()


def test_figures_are_drawn_without_torch() -> None:
    code = "import sys, stepscale.bench.cli.report, stepscale.bench.cli.publish; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_what_was_only_measured_disturbed_stays_in_the_tables(tmp_path: Path) -> None:
    run_of(tmp_path, {"relative": COSTS["relative"]}, DIMS)
    for dim in DIMS:
        made = record("layerwise", dim, 0, COSTS["layerwise"](dim))
        made.timing.blocks.other_cores = [1.0] * 6
        store.save(made, tmp_path)
    said = write.write(tmp_path)
    assert " contended" in said
    growth = pd.read_csv(tmp_path / "scaling.csv").set_index("optimizer")
    assert growth.loc["layerwise", "verdict"] == "nothing to judge"
    assert growth.loc["layerwise", "largest_dim"] == DIMS[-1]
    assert not len(pd.read_csv(tmp_path / "factors.csv"))


def test_without_the_baseline_all_pairs_are_told(tmp_path: Path) -> None:
    said = write.write(run_of(tmp_path, {"mine": COSTS["layerwise"], "relative": COSTS["relative"]}, DIMS))
    assert "`relative` overtakes `mine` between dim 128 and 192." in said
    assert "The baseline `layerwise` is not in this run" in said


def test_factors_are_of_decided_dims(tmp_path: Path) -> None:
    """At dims 64 and 96 the two are the same: no factor to speak of."""
    costs = {"layerwise": lambda d: 1e-6 * d * (1 + (d > 100)), "relative": lambda d: 1e-6 * d}
    said = write.write(run_of(tmp_path, costs, DIMS, seeds=3))
    line = "- `relative` is faster than `layerwise` at 7 of 9 dims, 2×, elsewhere equal within 5 % (dims 64–1024)."
    assert line in said.splitlines()


def test_a_damaged_record_is_named_in_the_report(tmp_path: Path) -> None:
    run_of(tmp_path, {"relative": COSTS["relative"]}, [64])
    (tmp_path / "records" / "broken.json").write_text("{")
    assert "broken.json is damaged" in write.write(tmp_path)
    assert "broken.json is damaged" in (tmp_path / "report.html").read_text()


def test_a_report_that_cannot_be_written_says_that_the_records_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> str:
        raise OSError(28, "No space left on device", "times.csv")

    monkeypatch.setattr(report, "write_of", full)
    with pytest.raises(UsageError, match=r"No space left .*; the records that are there are whole: once .* can be wr"):
        report.main([str(tmp_path)])


HOSTILE = (
    r"cost $\frac{a}{b$", "half \ud800", "a\x00b\x1b[2J\nc", "<script>alert(1)</script>", "a|b [x](http://y)",
    "=cmd|' /C calc'!A0", "$$", "_{", "^", "größe 漢",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:Glyph")  # a font may lack one
def test_names_are_letters_in_every_file_of_a_report(tmp_path: Path) -> None:
    run_of(tmp_path, {"layerwise": COSTS["layerwise"]} | {name: COSTS["relative"] for name in HOSTILE}, [64, 128])
    said = write.write(tmp_path)
    assert write.FAILED not in said
    times = pd.read_csv(tmp_path / "times.csv")
    assert {r"cost $\frac{a}{b$", "half ?", "a\ufffdb\ufffd[2J\ufffdc", "$$"} <= set(times["optimizer"])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page and r"cost $\frac{a}{b$" in page


def test_names_of_training_runs_are_letters_too(tmp_path: Path) -> None:
    for name in (r"cost $\frac{a}{b$", "$x$"):
        made = train_record("relative", 1)
        made.cell = replace(made.cell, optimizer=name)
        made.identity = str(len(name))
        store.save(made, tmp_path)
    assert write.FAILED not in write.write(tmp_path)
    assert r"cost $\frac{a}{b$" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_section_that_fails_costs_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise ZeroDivisionError("made to")

    run_of(tmp_path, {"relative": COSTS["relative"]}, [64])
    store.save(train_record("relative", 1), tmp_path)
    monkeypatch.setattr(write.scaling_section, "section", failing)
    said = write.write(tmp_path)
    assert f"{write.FAILED}: ZeroDivisionError: made to" in said and "Best at the end" in said
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "ZeroDivisionError: made to" in page and "Held-out likelihood" in page


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("name", ["times.csv", "scaling.png", "summary.md", "report.html"])
def test_a_report_that_cannot_be_written_leaves_the_earlier_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write.write(run_of(tmp_path, {"relative": COSTS["relative"]}, [64]))
    before = contents(tmp_path)
    run_of(tmp_path, {"relative": COSTS["relative"]}, [128])
    usual = io.open

    def full(file: object, mode: str = "r", *arguments: object, **options: object) -> object:
        if Path(str(file)).name == name and "w" in mode:
            raise OSError(28, "No space left on device", str(file))
        return usual(file, mode, *arguments, **options)  # type: ignore[call-overload]

    for module in (io, builtins):
        monkeypatch.setattr(module, "open", full)
    with pytest.raises(UsageError, match=r"No space left .* are whole: .* the same command"):
        report.main([str(tmp_path)])
    monkeypatch.undo()
    assert contents(tmp_path) == before
    assert not list(tmp_path.glob("*.partial"))


def test_a_folder_removed_while_its_report_is_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, usual = run_of(tmp_path / "run", {"relative": COSTS["relative"]}, [64]), write.page.page

    def removing(*arguments: object) -> str:
        shutil.rmtree(folder)
        return usual(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(write.page, "page", removing)
    with pytest.raises(UsageError, match=r"no report: .*run"):
        report.main([str(folder)])


def damaged_pictures() -> dict[str, bytes]:
    whole, many = io.BytesIO(), io.BytesIO()
    np.savez_compressed(whole, data=np.full((4, 4, 4), np.nan))
    np.savez_compressed(many, data=np.zeros((1, 10_000, 10_000)))
    return {"empty": b"", "no archive": b"PK", "not finite": whole.getvalue(), "unpacks to 762 MiB": many.getvalue()}


@pytest.mark.parametrize("later", ["a", "b"])
def test_pictures_are_those_beside_the_record_that_counts(tmp_path: Path, later: str) -> None:
    """The damaged one is named where it is looked at."""
    for name in ("a", "b"):
        made = replace(train_record("relative", 1), finished=str(name == later))
        path = store.save(made, tmp_path / name)
        (tmp_path / name / "pictures").mkdir()
        (tmp_path / name / "pictures" / f"{path.stem}.npz").write_bytes(b"")
    report.main([*(str(tmp_path / name) for name in ("a", "b")), "--to", str(tmp_path / "page")])
    said = (tmp_path / "page" / "summary.md").read_text()
    assert [name for name in ("a", "b") if str(tmp_path / name / "pictures") in said] == [later]


IMAGES, POINTS = np.full((4, 3, 3), 0.5), np.full((4, 2), 0.5)
WHOLE: dict[str, dict[str, np.ndarray]] = {
    "images": {"data": IMAGES, "samples": IMAGES, "filters": IMAGES},
    "images alone": {"data": IMAGES},
    "points": {"data": POINTS, "samples": POINTS, "log_density": np.zeros((5, 5)), "extent": np.array([0.0, 1, 0, 1])},
    "a posterior": {"data": np.eye(2), "contour": np.array([[0.0, 0], [1, 0], [0, 1]])},
}


@pytest.mark.parametrize("arrays", WHOLE.values(), ids=WHOLE)
def test_pictures_of_every_kind_are_drawn(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    path = tmp_path / "0.npz"
    np.savez_compressed(path, **arrays)
    figure = figures.pictures_figure({"relative": store.read_pictures(path)}, "made")
    assert figure is not None and sum(len(ax.images) + len(ax.lines) + len(ax.collections) for ax in figure.axes)


def test_images_stand_in_the_report(tmp_path: Path) -> None:
    path = store.save(train_record("relative", 1), tmp_path)
    (tmp_path / "pictures").mkdir()
    np.savez_compressed(tmp_path / "pictures" / f"{path.stem}.npz", **WHOLE["images"])
    said = write.write(tmp_path)
    assert "cannot be shown" not in said and write.FAILED not in said
    assert (tmp_path / "pictures.png").stat().st_size > 0


def test_a_contour_over_images_cannot_be_shown() -> None:
    with pytest.raises(ValueError, match="no mean and covariance in the plane"):
        store.check_pictures({"data": IMAGES, "contour": WHOLE["a posterior"]["contour"]})


@pytest.mark.parametrize("content", damaged_pictures().values(), ids=damaged_pictures())
def test_pictures_that_cannot_be_shown_are_named(tmp_path: Path, content: bytes) -> None:
    path = store.save(train_record("relative", 1), tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / f"{path.stem}.npz").write_bytes(content)
    said = write.write(tmp_path)
    assert f"{path.stem}.npz cannot be shown" in said and write.FAILED not in said
    assert "Best at the end" in said


def test_what_its_maker_says_of_a_run_is_a_finding_and_no_markup(tmp_path: Path) -> None:
    run_of(tmp_path, {"mine": lambda d: 1e-3}, [64])
    (tmp_path / "remarks.md").write_bytes(
        "The claim of `mine`\ndoes **not** show.\n\n\n<b>Nor</b> \xff this.\n".encode("latin-1")
    )
    said = write.write(tmp_path)
    assert "- The claim of `mine` does **not** show.\n" in said
    page, summary = (tmp_path / "report.html").read_text(), (tmp_path / "summary.md").read_text()
    assert "<code>mine</code> does <strong>not</strong> show." in page and "&lt;b&gt;Nor&lt;/b&gt; \ufffd this." in page
    assert "- The claim of" in summary and "<b>" not in summary
