"""One file per command of the command line; vton/cli.py only parses."""
