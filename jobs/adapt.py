"""Adapt the frozen backbone to every unseen test task by every method of an experiment, as Ray tasks."""

from promptdiffuser.pipeline.stages.adapt import command

if __name__ == "__main__":
    command()
