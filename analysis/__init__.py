"""Reads finished experiments from MLflow into pandas: figures, intervals and the report."""
