"""What can be trained: one file each, which the loop meets as a ``Trainee``."""
