"""`specstream benchmark`: experiments as data, measured with one ruler, in a folder that goes on where it stopped."""
