"""A transformers model's own parts: its modules, masks, positions and hidden states, as every release names them."""
