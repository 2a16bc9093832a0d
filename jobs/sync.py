"""Deliver what experiments have logged while MLflow was away."""

import sys

from promptdiffuser.cli.main import main

if __name__ == "__main__":
    main(["sync", *sys.argv[1:]])
