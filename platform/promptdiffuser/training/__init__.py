"""Losses, update steps and checkpoints; no Ray and no MLflow, so a plain loop can train with them."""
