"""Pruning by M-FAC's inverse Fisher matrix, not formed: which weights of a classifier can go, and what then moves."""

import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from stepscale.bench.data import digits
from stepscale.models import Classifier
from stepscale.optimizers import InverseFisher, Layerwise, pair

data, model = digits(dim=64, rows=None, seed=0, labels=True), Classifier(dim=64, depth=2)
step = pair(model, Layerwise, lambda parameters: torch.optim.Adam(parameters, lr=1e-3))
for _ in range(15):
    for batch in zip(data.train[0].split(100), data.train[1].split(100), strict=True):
        step(batch)

parameters = list(model.parameters())
rows = []
for x, label in zip(data.train[0][:400].split(1), data.train[1][:400].split(1), strict=True):
    rows.append(parameters_to_vector(torch.autograd.grad(model.loss((x, label)), parameters)))
inverse = InverseFisher(torch.stack(rows), damping=1e-4)  # of one row's gradients
weights = parameters_to_vector(parameters).detach().double()
share = weights / inverse.diagonal()  # what F⁻¹ is multiplied by, so that a weight becomes zero
print(f"of all {len(weights)} weights: {model.loss(data.held_out).item():.3f} nats")
for name, costs, moved in (
    ("the smallest", weights.square(), False),
    ("the cheapest", inverse.pruning_costs(weights), False),
    ("the cheapest, the others moved", inverse.pruning_costs(weights), True),
):
    gone = costs.argsort()[: len(weights) * 3 // 5]
    left = weights - inverse.times(torch.zeros_like(weights).index_copy(0, gone, share[gone])) * moved
    vector_to_parameters(left.index_fill(0, gone, 0).float(), parameters)
    print(f"without {name}: {model.loss(data.held_out).item():.3f}")
