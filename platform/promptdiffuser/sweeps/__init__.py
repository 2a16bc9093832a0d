"""Searching for good settings: what a sweep is, its space, and which point it tries next. No Ray, no MLflow."""
