"""`python -m whet`: the command where its script is not on the PATH."""

from whet.cli import entry_point

if __name__ == "__main__":
    entry_point()
