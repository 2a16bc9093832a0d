"""Write the report of an experiment: one self-contained HTML page, made from MLflow alone."""

import sys

from promptdiffuser.cli.main import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])
