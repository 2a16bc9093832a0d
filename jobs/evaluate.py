"""Evaluate every method of an experiment on the unseen test tasks, on a pool of rollout actors."""

from promptdiffuser.pipeline.stages.evaluate import command

if __name__ == "__main__":
    command()
