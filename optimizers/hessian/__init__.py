"""Steps by products with the curvature of a batch, of which no factor and no inverse is kept."""
