"""Updates of four kinds train one model, which offers its loss and nothing else."""

from functools import partial

import torch
from own_model import Denoiser
from schedulefree import AdamWScheduleFree
from singd.optim.optimizer import SINGD

from stepscale.optimizers import Averaged, Layerwise, pair, split

UPDATES = {
    "Muon, AdamW": partial(
        split, matrices=partial(torch.optim.Muon, lr=0.02), rest=partial(torch.optim.AdamW, lr=0.01)
    ),
    "L-BFGS": partial(torch.optim.LBFGS, max_iter=4, history_size=10, line_search_fn="strong_wolfe"),
    "schedule-free": partial(AdamWScheduleFree, lr=0.01),
    "SINGD": partial(SINGD, lr=0.01, T=10),
}

batches = torch.randn(6400, 16).split(100)
for name, update in UPDATES.items():
    torch.manual_seed(0)
    model = Denoiser(dim=16)
    before = model.loss(batches[0]).item()
    step = pair(model, Layerwise, update)
    for batch in batches:
        step(batch)
    if isinstance(step.update, Averaged):
        step.update.eval()  # it is judged at its average
    print(f"{name}: {before:.1f}, then {model.loss(batches[0]).item():.1f}")
