"""The report of a sweep: which configuration is best, which fields matter, and what a better result costs."""

import sys

from promptdiffuser.reporting.sweep_report import main

if __name__ == "__main__":
    sys.exit(main())
