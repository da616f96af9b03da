"""``SpeculativeEngine`` and the functions beside it: arguments in, parts made, text out."""
