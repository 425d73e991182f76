"""Families of unified models, a folder each; models/registry.py lists them."""
