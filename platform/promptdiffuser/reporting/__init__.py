"""Reads finished experiments from MLflow into pandas: statistics, figures and the report."""
