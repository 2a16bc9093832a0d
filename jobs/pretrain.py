"""Pre-train the Prompt-DT backbone on the training tasks: Ray Data reads and shards, Ray Train trains."""

import sys

from promptdiffuser.cli.main import main

if __name__ == "__main__":
    main(["stage", "pretrain", *sys.argv[1:]])
