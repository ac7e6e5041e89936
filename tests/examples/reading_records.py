"""A run's records as a table: how far each optimizer's step is from the limit, by dim."""

from stepscale.bench import load

cells = load("results/cpu-2-cores")  # one row a cell; bench/README.md says what each column means
fine = cells[(cells["status"] == "ok") & ~cells["contended"] & (cells["batch"] == 100)]
table = fine.pivot_table(index="dim", columns="optimizer", values="ratio", aggfunc="median")
print(table.round(2).to_string(na_rep=""))

seeds = fine.groupby(["optimizer", "dim"])["ratio"].agg(["count", "min", "max"])
widest = (seeds["max"] / seeds["min"]).idxmax()
print(f"processes differ most at {widest[0]}, dim {widest[1]}:", seeds.loc[widest].round(2).to_dict())
