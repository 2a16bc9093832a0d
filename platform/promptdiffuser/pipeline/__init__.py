"""The pipeline: stages, experiments, sweeps and benchmarks."""
