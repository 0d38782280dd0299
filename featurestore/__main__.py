"""The command line as ``python -m featurestore``."""

from featurestore.cli.commands import main

if __name__ == "__main__":
    main()
