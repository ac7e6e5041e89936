"""What Extra-P says of a run's step times, beside the counted order and our verdict: ``make peers-growth``.

Extra-P (Calotoiu et al. 2013, "Using automated performance modeling to find scalability bugs in complex codes") fits a
performance model to times alone: a sum of terms c · d^i · log2(d)^j, chosen by cross-validation.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd
from extrap.entities.callpath import Callpath
from extrap.entities.coordinate import Coordinate
from extrap.entities.experiment import Experiment
from extrap.entities.measurement import Measurement
from extrap.entities.metric import Metric
from extrap.entities.parameter import Parameter
from extrap.modelers.model_generator import ModelGenerator

from stepscale.bench.analysis.cubic_work import growth
from stepscale.bench.records.schema import GROUP
from stepscale.bench.records.tables import load

TIME = Metric("step_ms")


def models(cells: pd.DataFrame) -> dict[str, str]:
    """Return Extra-P's model of each optimizer's step time in ms, from the times of all processes at each dim."""
    experiment, dim = Experiment(), Parameter("d")
    experiment.add_metric(TIME)
    experiment.add_parameter(dim)
    for at in sorted(cells["dim"].unique()):
        experiment.add_coordinate(Coordinate(float(at)))
    for name, part in cells.groupby("optimizer"):
        experiment.add_callpath(Callpath(str(name)))
        for at, own in part.groupby("dim"):
            times = own["step_ms"].tolist()
            experiment.add_measurement(Measurement(Coordinate(float(at)), Callpath(str(name)), TIME, times))
    ModelGenerator(experiment, use_median=True).model_all()
    found = experiment.modelers[0].models
    return {path.name: rounded(model.hypothesis.function.to_string(dim)) for (path, _), model in found.items()}


def rounded(function: str) -> str:
    """Round a function's coefficients to three digits."""
    return re.sub(r"\d+\.\d+(e-?\d+)?", lambda number: f"{float(number[0]):.3g}", function)


def table(cells: pd.DataFrame) -> pd.DataFrame:
    """One row an optimizer of the group with most cells."""
    ok = cells[cells["status"] == "ok"]
    _, largest = max(ok.groupby(list(GROUP)), key=lambda group: len(group[1]))
    said, judged = models(largest), growth(largest).set_index("optimizer")
    rows = [
        {
            "optimizer": name,
            "dims": f"{row['dim_min']}–{row['dim_max']}",
            "Extra-P, of the times": said[name],
            "counted": f"d^{row['flop_exponent']:.2f}",
            "of the step cubic, %": f"{100 * row['cubic_low']:.0f}–{100 * row['cubic_high']:.0f}",
            "verdict": row["verdict"],
        }
        for name, row in judged.iterrows()
    ]
    return pd.DataFrame(rows)


def main() -> None:
    """Print the table of the run that is named, and write it beside its other tables."""
    run = Path(sys.argv[1])
    found = table(load(run))
    found.to_csv(run / "extra_p.csv", index=False)
    print(found.to_markdown(index=False))


if __name__ == "__main__":
    main()
