"""Adapt the frozen backbone to every unseen test task by every method of an experiment, as Ray tasks."""

import sys

from promptdiffuser.cli.main import main

if __name__ == "__main__":
    main(["stage", "adapt", *sys.argv[1:]])
