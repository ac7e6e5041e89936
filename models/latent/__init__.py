"""Models with hidden variables, whose gradient is an estimate of their own."""
