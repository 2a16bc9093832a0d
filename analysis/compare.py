"""Compare runs of MLflow: what differs in configuration, in training, in returns and in cost, and how sure that is."""

import sys

from promptdiffuser.cli.main import main

if __name__ == "__main__":
    main(["compare", *sys.argv[1:]])
