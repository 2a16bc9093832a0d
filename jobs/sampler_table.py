"""Compare samplers on one and the same diffusers by the downstream loss behind the prompts that they generate."""

from promptdiffuser.pipeline.sampler_table import command

if __name__ == "__main__":
    command()
