"""Run an experiment from its first stage to its report; finished stages are recognised, interrupted ones continue."""

from promptdiffuser.pipeline.run import command

if __name__ == "__main__":
    command()
