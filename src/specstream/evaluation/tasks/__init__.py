"""Tasks as data: a YAML file for each, and their reader. Adding a task is one file."""
