"""The report of a sweep: which configuration is best, which fields matter, and what a better result costs."""

import sys

from promptdiffuser.cli.main import main

if __name__ == "__main__":
    main(["sweep-report", *sys.argv[1:]])
