"""A small family that draws code by code and reads features: the smallest that fits the seam."""
