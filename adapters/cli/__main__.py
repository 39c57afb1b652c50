"""`python -m adapters.cli`: the command line without an installed script."""

from adapters.cli import main

main()
