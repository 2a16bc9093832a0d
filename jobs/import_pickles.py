"""Import the pickles that Prompt-DT and its followers publish as a dataset."""

import sys

from promptdiffuser.cli.main import main

if __name__ == "__main__":
    main(["data", "import-pickles", *sys.argv[1:]])
