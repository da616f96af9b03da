"""What a GPU says of this package, in minutes: ``python -m benchmarks.gpu`` (see ``docs/cuda.md``).

Every part runs in a process of its own: what breaks one part, even the device's context, leaves the others alone.
"""
