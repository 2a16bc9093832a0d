"""Compare runs of MLflow: what differs in configuration, in training, in returns and in cost, and how sure that is."""

import sys

from promptdiffuser.reporting.compare import main

if __name__ == "__main__":
    sys.exit(main())
