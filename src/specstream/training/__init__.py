"""Training: data, one loop, and one recipe for each thing that can be trained."""
