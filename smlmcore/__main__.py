"""`python -m smlmcore` is the command `smlmcore`."""

from .cli import command

if __name__ == "__main__":
    command()
