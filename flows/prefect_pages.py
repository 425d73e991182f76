"""The local server's copy of Prefect's pages: one click logs in, and they ask no other machine."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from flows.logins import write_private

PAGES = "prefect/ui"  # the copy, in the state folder
OPEN = "open.html"
# Prefect's pages keep what was typed into their form where a page of the same server may put it.
# What follows the "#" of an address is never sent: the login, and a page of this server.
OPEN_PAGE = r"""<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>Prefect</title><script>
const [, login, page] = /^#?([^/]*)(.*)$/.exec(location.hash);
if (login) localStorage.setItem("prefect-password", btoa(decodeURIComponent(login)));
location.replace(/^([/][\w?=-]+)+$/.test(page) ? page : "/");
</script></html>
"""
# The pages of Prefect 3.8 ask a company that counts visitors for settings, also when the server is
# told to count nobody.
HERE = "127.0.0.1:* localhost:* ws://127.0.0.1:* ws://localhost:*"
POLICY = (
    f'<meta http-equiv="Content-Security-Policy" content="connect-src \'self\' data: blob: {HERE}">'
)


def prepare_pages(state: Path) -> None:
    """Add the page that logs in and leads on, and let browsers connect to this machine alone."""
    for version in ("v1", "v2"):  # v1 is served below "/", v2 below "/v2/"
        folder = state / PAGES / version
        index = folder / "index.html"
        if not index.is_file():
            continue
        page = index.read_text(encoding="utf-8")
        if POLICY not in page:
            write_private(index, page.replace("<head>", f"<head>{POLICY}", 1))
        if version == "v1":
            write_private(folder / OPEN, OPEN_PAGE)


def clickable_prefect(address: str, login: str) -> str:
    """Address of one of Prefect's pages by which a browser is logged in as well."""
    if not login:
        return address
    parts = urlsplit(address)
    page = urlunsplit(("", "", *parts[2:]))
    return f"{parts.scheme}://{parts.netloc}/{OPEN}#{quote(login, safe=':')}{page}"
