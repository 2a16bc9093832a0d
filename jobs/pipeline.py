"""Run an experiment from its first stage to its report; finished stages are recognised, interrupted ones continue."""

import sys

from promptdiffuser.cli.main import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
