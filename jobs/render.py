"""Film one episode of a demonstrator as MP4 or GIF."""

from promptdiffuser.cli.render import command

if __name__ == "__main__":
    command()
