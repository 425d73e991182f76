"""The command `hermesflow`: what can be typed, and what it calls.

Modules of this package hold options and their help alone. Each command imports what it calls when
it runs, so that help and completion are there at once.
"""
