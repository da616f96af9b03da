"""SpecStream beside other systems, and the figures it has to reach. See README.md for the commands."""
