"""The tables of the READMEs that follow from the code: ``python -m tests.readme_tables --update`` writes them anew."""

from __future__ import annotations

import argparse
import pkgutil
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import yaml

from stepscale.bench.cli import listing
from stepscale.bench.records import tables
from stepscale.bench.records.columns import COLUMNS, key_of
from stepscale.bench.report import page, scaling_tables
from tests.support.every_table import columns_of_every_table

ROOT = Path(__file__).parent.parent
CONF = ROOT / "bench" / "conf"


def optimizers() -> str:
    """One row a method: the files that use it, what it does and what a step of it costs, the papers it is from."""
    names: dict[type, list[str]] = {}
    for path in sorted((CONF / "optimizer").glob("*.yaml")):
        names.setdefault(method(path), []).append(f"`{path.stem}` ({listing.update_of(path)})")
    rows = [
        {
            "file (update)": ", ".join(files),
            "class": f"`{found.__name__}`",
            "what it does, and what a step costs": in_a_cell(first_line(found)),
            "paper": papers(found),
        }
        for found, files in sorted(names.items(), key=lambda item: (item[0].__module__, item[0].__name__))
    ]
    return pd.DataFrame(rows).to_markdown(index=False, tablefmt="github")


def libraries() -> str:
    """One row a file of another package's optimizer: its period, what it is built of, what it does."""
    rows = []
    for path in sorted((CONF / "optimizer" / "library").glob("*.yaml")):
        text = path.read_text()
        config, (does, joins) = yaml.safe_load(text), listing.comment_parts(text)
        varies = config.get("closure") == "first"
        rows.append(
            {
                "`optimizer=`": f"`library/{path.stem}`",
                "package": f"`{listing.package_of(path)}`",
                "update": listing.update_of(path),
                "what it does": does,
                "joins by": joins,
                "period": "none" if varies else config.get("period", 1),
            }
        )
    return pd.DataFrame(rows).to_markdown(index=False, tablefmt="github")


def method(path: Path) -> type:
    """Return the class that an optimizer's file is about: its step's, or that of the direction it pairs."""
    found = pkgutil.resolve_name(str(listing.target_of(path)))
    assert isinstance(found, type)
    return found


def first_line(found: type) -> str:
    """Return a class's first line, in which its cost stands."""
    return (found.__doc__ or "").strip().splitlines()[0]


def papers(found: type) -> str:
    """Link the papers of arXiv that a class and its module name."""
    text = " ".join(f"{sys.modules[found.__module__].__doc__} {found.__doc__}".split())
    numbers = dict.fromkeys(re.findall(r"arXiv (\d{4}\.\d{5})", text))
    return ", ".join(f"[{number}](https://arxiv.org/abs/{number})" for number in numbers)


def in_a_cell(text: str) -> str:
    """Return text as Markdown's tables take it."""
    return text.replace("``", "`").replace("|", r"\|")


def excerpt() -> str:
    """The table that a published run's report begins with, as a terminal shows it."""
    cells = tables.load(ROOT / "results" / "cpu-2-cores")
    title, table = next(iter(scaling_tables.headlines(scaling_tables.judge(cells)).items()))
    return f"```\n{title}\n\n{page.text_table(table)}\n```"


PREDICTED = pd.DataFrame(  # for an H100, float32, batch 128, depth 2, by the rates it was believed to have
    [
        [1024, 0.13, 2.0, 1.7, 9, 35, 2.2],
        [2048, 0.30, 1.3, 1.15, 20, 49, 4],
        [4096, 0.86, 1.28, 1.10, 49, 45, 16],
        [8192, 2.9, 1.29, 1.10, 174, 46, 75],
        [16384, 10.7, 1.29, 1.08, 895, 65, 430],
    ],
    columns=["dim", "limit", "relative / limit", "fused / limit", "layerwise", "layerwise / relative", "kfac"],
).set_index("dim")


def predictions() -> str:
    """What was predicted of an H100, and, after an arrow, what was measured; milliseconds and ratios."""
    largest, default = (pd.read_csv(ROOT / "results" / name / "times.csv") for name in ("h100-largest", "h100"))
    default = default[(default["batch"] == 100) & (default["optimizer"] == "kfac")]
    rows = pd.concat([largest[largest["dtype"] == "float32"], default]).replace({"dim": {1000: 1024}})
    times = rows.groupby(["dim", "optimizer"]).first()
    step, ratio = times["step_ms"].unstack(), times["ratio"].unstack()
    measured = pd.DataFrame(
        {
            "limit": times["limit_ms"].unstack()["layerwise"],
            "relative / limit": ratio["relative"],
            "fused / limit": ratio["relative_fused[track=false]"],
            "layerwise": step["layerwise"],
            "layerwise / relative": step["layerwise"] / step["relative"],
            "kfac": step["kfac"],
        }
    )
    shown = {
        name: [f"{expected:g} → {measured.at[dim, name]:.3g}" for dim, expected in PREDICTED[name].items()]
        for name in PREDICTED
    }
    return pd.DataFrame(shown, index=PREDICTED.index).to_markdown(tablefmt="github")


def settings() -> str:
    """The files that hold every setting's default and what it means; Hydra's own part left out."""
    parts = []
    for name in ("config", "timing/default", "training/default"):
        text = (CONF / f"{name}.yaml").read_text().split("\nhydra:\n")[0].strip()
        parts.append(f"`conf/{name}.yaml`:\n\n```yaml\n{text}\n```")
    return "\n\n".join(parts)


def columns() -> str:
    """One row a column of the tables: its unit, the tables that have it, its meaning."""
    found: dict[str, list[str]] = {key: [] for key in COLUMNS}
    for table, names in columns_of_every_table().items():
        for name in names:
            found[key_of(table, name)].append(table)
    rows = [
        {
            "column": f"`{key.split('.')[-1]}`",
            "unit": column.unit,
            "in": ", ".join(found[key]),
            "meaning": column.meaning,
        }
        for key, column in COLUMNS.items()
    ]
    return pd.DataFrame(rows).to_markdown(index=False, tablefmt="github")


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "optimizers": ("optimizers/README.md", optimizers),
    "libraries": ("optimizers/README.md", libraries),
    "excerpt": ("README.md", excerpt),
    "predictions": ("results/README.md", predictions),
    "settings": ("bench/README.md", settings),
    "columns": ("bench/README.md", columns),
}


def filled(text: str, name: str, table: str) -> str:
    """Put a table between its marks.

    Raises:
        ValueError: the text has no such marks.
    """
    start, end = f"<!-- table: {name} -->\n", "<!-- end of table -->"
    if start not in text:
        raise ValueError(f"no mark {start.strip()!r}")
    before, rest = text.split(start, 1)
    return f"{before}{start}{table}\n{end}{rest.split(end, 1)[1]}"


def main() -> None:
    """Say which tables are not what the code says; with ``--update`` write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true", help="write the tables into the READMEs")
    updating, stale = parser.parse_args().update, []
    for name, (file, table) in TABLES.items():
        path = ROOT / file
        old = path.read_text()
        new = filled(old, name, table())
        if new != old:
            stale.append(f"{file}: {name}")
            if updating:
                path.write_text(new)
    print("\n".join(stale) or "every table is as the code says")
    sys.exit(bool(stale) and not updating)


if __name__ == "__main__":
    main()
