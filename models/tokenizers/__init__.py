"""Tokenizers of images that families share."""
