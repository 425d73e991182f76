"""Training on preference pairs: data, objectives, the optimizer, states and the loop."""
