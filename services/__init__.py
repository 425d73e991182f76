"""Servers that stages talk to: language models, and what is asked of them."""
