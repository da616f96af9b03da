"""`specstream report`: what benchmark runs say, as charts, a page and Markdown; and whether two of them differ."""
