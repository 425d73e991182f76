"""Benchmarks by their official rules: items from published files, answers of a model, figures."""
