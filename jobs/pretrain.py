"""Pre-train the Prompt-DT backbone on the training tasks: Ray Data reads and shards, Ray Train trains."""

from promptdiffuser.pipeline.stages.pretrain import command

if __name__ == "__main__":
    command()
