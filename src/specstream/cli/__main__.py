"""``python -m specstream.cli``, for launchers that want a module."""

from specstream.cli import main

main()
