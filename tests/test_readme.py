"""What the READMEs show must run as it stands, and say what the code and the records say."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from stepscale.bench.__main__ import COMMANDS
from stepscale.bench.config import compose_cell, searchable
from stepscale.bench.regression import self_check
from stepscale.models import contract
from tests import readme_tables
from tests.support.compose import built, composed

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "tests" / "examples"
FOLDERS = ("bench", "optimizers", "models", "results")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / folder / "README.md" for folder in FOLDERS)]
README = PAGES[0].read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_the_library_it_shows_is_that_of_the_example() -> None:
    assert blocks("python")[-1] == (EXAMPLES / "library.py").read_text().split('"""\n\n')[1]


def test_the_model_it_shows_is_that_of_the_example() -> None:
    assert blocks("python")[0] in (EXAMPLES / "own_model.py").read_text()


def test_the_four_lines_build_an_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    (lines,) = blocks("yaml")
    model = built(composed("dim=4")["model"])
    step = built(OmegaConf.create(lines))(model)
    assert step.direction.bias == "plain" and type(step.update).__name__ == "SignDescent"


def test_the_file_that_says_what_grows_is_a_model(tmp_path: Path) -> None:
    (lines,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "models" / "README.md").read_text(), flags=re.DOTALL)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "zuko_nsf.yaml").write_text(lines)
    words = searchable(["--config-dir", str(tmp_path), "model=zuko_nsf", "data.dim=8", "dim=64"])
    cell = compose_cell(words)
    assert cell.names["model"] == "zuko_nsf"
    assert cell.config["model"] == {"_target_": "own_zuko_flow.ZukoNSF", "features": 8, "hidden": 64, "depth": 2}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_it_names_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make\s([a-z]+-?[a-z]*)\b", page.read_text(), flags=re.MULTILINE)) <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_it_links_to_is_there(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if link.startswith("https://"):
            continue
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not heading or heading in headings(target), link


def headings(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", readme_tables.TABLES)
def test_a_table_made_from_the_code_is_up_to_date(name: str) -> None:
    file, table = readme_tables.TABLES[name]
    text = (ROOT / file).read_text()
    assert readme_tables.filled(text, name, table()) == text, "python -m tests.readme_tables --update"


def test_the_findings_it_quotes_were_printed() -> None:
    printed = (ROOT / "results" / "cpu-2-cores" / "summary.md").read_text().splitlines()
    quoted = re.findall(r"^> (.*)", README, flags=re.MULTILINE)
    assert len(quoted) == 3 and set(quoted) <= set(printed)


def test_every_room_has_its_line() -> None:
    for folder in ("bench", "optimizers"):
        page = (ROOT / folder / "README.md").read_text()
        rooms = {path.name for path in (ROOT / folder).iterdir() if path.is_dir() and (path / "__init__.py").exists()}
        assert [room for room in rooms if f"| `{room}/` |" not in page] == []


def test_every_command_and_every_protocol_is_told() -> None:
    page = (ROOT / "bench" / "README.md").read_text()
    assert [name for name in COMMANDS if f"stepscale {name}" not in page] == []
    page = (ROOT / "models" / "README.md").read_text()
    names = [name for name, found in vars(contract).items() if getattr(found, "_is_protocol", False)]
    assert [name for name in names if name not in ("Protocol", "Model") and f"| `{name}` |" not in page] == []


def test_the_table_of_the_gate_is_the_one_measured() -> None:
    measured = (ROOT / "results" / "gate" / "README.md").read_text()
    table = [line for line in measured.splitlines() if line.startswith("|")]
    assert len(table) > 10 and "\n".join(table) in (ROOT / "results" / "README.md").read_text()
    assert self_check.page(ROOT / "results" / "gate") == measured
