"""Unified models behind one protocol, their tokenizers, decoding, packing and losses."""
