"""Servers of this machine are reached directly, whatever proxy the environment names.

A company's proxy cannot know what 127.0.0.1 is here. HTTP libraries send everything through it
that NO_PROXY does not name, so commands complete it for themselves and for what they start.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import urllib.request
from collections.abc import Mapping, MutableMapping
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

HERE = ("localhost", "127.0.0.1", "::1")
SPELLINGS = ("no_proxy", "NO_PROXY")  # most libraries prefer the first
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
# Servers that may run here under another name, or beside this container.
SERVERS = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
OWN_NAME = "HERMESFLOW_HOST"  # by which others reach the machine where our local servers run


def is_near(url: str) -> bool:
    """Whether an address is of this machine or, as its name has no domain, of the same network."""
    host = _host(url)
    ours = (socket.gethostname().lower(), os.environ.get(OWN_NAME, "").lower())
    if not host or host in ours or host.endswith(".localhost"):
        return bool(host)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host
    return address.is_loopback or address.is_unspecified


def past_proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """NO_PROXY in both spellings: what it names already, this machine, and servers near it."""
    given = next((environment[name] for name in SPELLINGS if environment.get(name)), "")
    if given.strip() == "*":
        return dict.fromkeys(SPELLINGS, "*")
    named = [part.strip() for part in given.split(",") if part.strip()]
    urls = [environment.get(name, "") for name in SERVERS]
    near = [_host(url) for url in urls if is_near(url)]
    near += [environment[OWN_NAME]] if environment.get(OWN_NAME) else []
    return dict.fromkeys(SPELLINGS, ",".join(dict.fromkeys([*named, *HERE, *near])))


def go_past_proxies(environment: MutableMapping[str, str] = os.environ) -> str:
    """Let this process, and what it starts, reach what is near directly.

    A proxy that our HTTP client cannot speak to is left out, since the client would not even start
    with it; returns the words that say so, or nothing.
    """
    environment.update(past_proxies(environment))
    unusable = {name: environment[name] for name in PROXIES if not _usable(environment.get(name))}
    for name in unusable:
        del environment[name]
    if not unusable:
        return ""
    schemes = sorted({proxy.partition("://")[0] for proxy in unusable.values()})
    return (
        f"{', '.join(unusable)} is left out: a proxy of the kind {schemes[0]}:// cannot be used "
        "here; if addresses outside of this machine are needed, give one that begins with http://"
    )


def has_proxy() -> bool:
    """Whether the environment names a proxy."""
    return any(os.environ.get(name) for name in PROXIES)


def no_proxy_for(url: str) -> dict[str, None]:
    """`mounts` of an httpx client that asks `url`: none for what is near goes through a proxy."""
    host = _host(url)
    return {f"all://[{host}]" if ":" in host else f"all://{host}": None} if is_near(url) else {}


def open_url(url: str | urllib.request.Request, timeout: float, *, direct: bool = False) -> Any:
    """As `urllib.request.urlopen`, without a proxy if `direct` or where the address is near."""
    address = url if isinstance(url, str) else url.full_url
    handlers = [urllib.request.ProxyHandler({})] if direct or is_near(address) else []
    return urllib.request.build_opener(*handlers).open(url, timeout=timeout)


def _usable(proxy: str | None) -> bool:
    if not proxy or "://" not in proxy:
        return True
    socks = ("socks5", "socks5h") if find_spec("socksio") else ()
    return proxy.partition("://")[0].lower() in ("http", "https", *socks)


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
