"""Updates of our own: any ``torch.optim.Optimizer`` may stand in their place."""
