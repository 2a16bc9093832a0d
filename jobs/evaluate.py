"""Evaluate every method of an experiment on the unseen test tasks, on a pool of rollout actors."""

import sys

from promptdiffuser.cli.main import main

if __name__ == "__main__":
    main(["stage", "evaluate", *sys.argv[1:]])
