"""Train the diffusers of an experiment on the training tasks, with Ray Train."""

import sys

from promptdiffuser.cli.main import main

if __name__ == "__main__":
    main(["stage", "train-diffuser", *sys.argv[1:]])
