"""Make the experts of task families and measure the reference returns of every task."""

import sys

from promptdiffuser.cli.main import main

if __name__ == "__main__":
    main(["experts", *sys.argv[1:]])
