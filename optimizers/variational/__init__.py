"""Steps for a Gaussian approximation of a posterior."""
