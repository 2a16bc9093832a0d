"""Deliver what experiments have logged while MLflow was away."""

from promptdiffuser.cli.sync import command

if __name__ == "__main__":
    command()
