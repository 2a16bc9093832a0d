"""Collect the offline dataset of an experiment: rollout actors run the family's experts on every task."""

import sys

from promptdiffuser.cli.main import main

if __name__ == "__main__":
    main(["stage", "collect", *sys.argv[1:]])
