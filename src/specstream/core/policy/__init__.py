"""How much to draft: what passes cost, what is accepted, and what that makes worth trying."""
