"""Say what a dataset holds: tasks, episodes, returns, and how it was made."""

import sys

from promptdiffuser.cli.main import main

if __name__ == "__main__":
    main(["data", "describe", *sys.argv[1:]])
