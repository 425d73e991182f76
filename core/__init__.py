"""Config, store, runtime: knows nothing of the other layers."""
