"""A transformers model as a target: sessions, the layout of trees, ragged passes, CUDA graphs."""
