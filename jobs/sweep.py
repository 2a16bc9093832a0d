"""Search around an experiment with Ray Tune, scored on validation tasks; the best is confirmed once on test tasks."""

import sys

from promptdiffuser.cli.main import main

if __name__ == "__main__":
    main(["sweep", *sys.argv[1:]])
