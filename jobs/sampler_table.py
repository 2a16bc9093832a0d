"""Compare samplers on one and the same diffusers by the downstream loss behind the prompts that they generate."""

import sys

from promptdiffuser.cli.main import main

if __name__ == "__main__":
    main(["sampler-table", *sys.argv[1:]])
