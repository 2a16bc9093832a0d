"""Search around an experiment with Ray Tune, scored on validation tasks; the best is confirmed once on test tasks."""

from promptdiffuser.pipeline.sweep import command

if __name__ == "__main__":
    command()
