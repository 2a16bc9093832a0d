"""Import the pickles that Prompt-DT and its followers publish as a dataset."""

from promptdiffuser.cli.import_pickles import command

if __name__ == "__main__":
    command()
