"""Models by name: the catalog, the hub, wheels, GGUF files, and loading."""
