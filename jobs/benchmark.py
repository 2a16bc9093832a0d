"""Compare methods on equal terms: methods x families x seeds x sizes of the few-shot set, in one table a family."""

from promptdiffuser.pipeline.benchmark import command

if __name__ == "__main__":
    command()
