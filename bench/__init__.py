"""Speed and memory of the models; quality is in `evals`."""
