"""How each stage is made: what pipeline/stages declares, done on Ray and logged to MLflow."""
