"""Compare methods on equal terms: methods x families x seeds x sizes of the few-shot set, in one table a family."""

import sys

from promptdiffuser.cli.main import main

if __name__ == "__main__":
    main(["benchmark", *sys.argv[1:]])
