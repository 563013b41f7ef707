"""`python -m graphc.cli` is the `graphc` command."""

from graphc.cli.main import main

main()
