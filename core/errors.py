"""Errors a user can act on."""


class UserError(Exception):
    """Bad input or environment; the message names the field, the value and the way out.

    Commands print the message without a traceback and exit with code 2.
    """
