"""Write the report of an experiment: one self-contained HTML page, made from MLflow alone."""

import sys

from promptdiffuser.reporting.report import main

if __name__ == "__main__":
    sys.exit(main())
