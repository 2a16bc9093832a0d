"""Exchange datasets with other formats: MACAW's buffers in, Minari datasets in and out."""

import sys

from promptdiffuser.cli.main import main

if __name__ == "__main__":
    main(["data", "exchange", *sys.argv[1:]])
