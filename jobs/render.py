"""Film one episode of a demonstrator as MP4 or GIF."""

import sys

from promptdiffuser.cli.main import main

if __name__ == "__main__":
    main(["data", "render", *sys.argv[1:]])
