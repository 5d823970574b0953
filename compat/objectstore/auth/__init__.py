"""Tokens, where version 0.2.0 has them."""
