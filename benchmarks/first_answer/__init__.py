"""How soon an answer is there, and that it is the same answer."""
