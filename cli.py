"""Command line of featurestore, run from a checkout: ``uv run cli.py --help``."""

from featurestore.cli.commands import main

if __name__ == "__main__":
    main()
