"""Collect the offline dataset of an experiment: rollout actors run the family's experts on every task."""

from promptdiffuser.pipeline.stages.collect import command

if __name__ == "__main__":
    command()
