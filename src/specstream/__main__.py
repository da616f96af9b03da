"""``python -m specstream``, the command line where its script is on no path."""

from specstream.cli import main

main()
