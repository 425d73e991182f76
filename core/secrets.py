"""Secrets are in the environment alone; here what might repeat one is kept from doing so."""

import os
import re

_NAMES = re.compile(
    r"(?:^|_)(?:SECRET|PASSWORD|TOKEN|API_?KEY|PRIVATE_KEY|AUTH_STRING)(?:$|_)", re.IGNORECASE
)
_USER_INFO = re.compile(r"(?<=://)[^/@\s'\"]+(?=@)")
MASK = "***"
SHORTEST = 6  # characters; shorter ones are in too many words to be replaced


def is_secret(name: str) -> bool:
    """Whether a variable of this name holds a secret."""
    return _NAMES.search(name) is not None


def masked(text: str) -> str:
    """Text without user and password in addresses, and without the values of secret variables."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and is_secret(name):
            text = text.replace(value, MASK)
    return _USER_INFO.sub(MASK, text)
