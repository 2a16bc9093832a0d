"""Exchange datasets with other formats: MACAW's buffers in, Minari datasets in and out."""

from promptdiffuser.cli.exchange import command

if __name__ == "__main__":
    command()
