"""The only floor that imports Ray: clusters, datasets, training, rollouts, sweeps. It adds no mathematics."""
