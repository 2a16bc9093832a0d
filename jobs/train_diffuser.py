"""Train the diffusers of an experiment on the training tasks, with Ray Train."""

from promptdiffuser.pipeline.stages.train_diffuser import command

if __name__ == "__main__":
    command()
