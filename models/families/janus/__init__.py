"""Janus and Janus-Pro: a vision tower reads, codes drawn one after the other are generated."""
