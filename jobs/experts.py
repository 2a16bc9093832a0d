"""Make the experts of task families and measure the reference returns of every task."""

from promptdiffuser.pipeline.experts import command

if __name__ == "__main__":
    command()
