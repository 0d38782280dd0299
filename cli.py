"""Command line of featurestore, run from a checkout: ``uv run cli.py --help``."""

from featurestore.commands import main

if __name__ == "__main__":
    main()
