"""Say what a dataset holds: tasks, episodes, returns, and how it was made."""

from promptdiffuser.cli.describe import command

if __name__ == "__main__":
    command()
