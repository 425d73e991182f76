"""How the local MLflow server lets browsers in by one click; its settings name `authenticate`.

A browser takes user and password from an address, but then refuses every request of a page that
has them in its own address. So they are given to OPEN, whose page leads on without them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask import Response
    from werkzeug.datastructures import Authorization

AUTHENTICATE = "tracking.browser_login:authenticate"
OPEN = "open"
# What it keeps in a browser that has kept nothing else yet: pages for training, not for traces of
# applications, and an assistant that stays closed until it is asked for. Of MLflow 3.17.
OPEN_PAGE = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>MLflow</title><script>
const first = {
  "mlflow.workflowType_v1": '"machine_learning"',
  "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
};
for (const [name, value] of Object.entries(first))
  if (localStorage.getItem(name) === null) localStorage.setItem(name, value);
location.replace(location.origin + "/" + location.hash);
</script></html>
"""


def authenticate() -> Authorization | Response:
    """MLflow's own check of a request's user and password; who passes it gets OPEN, too."""
    from flask import Response, request
    from mlflow.server.auth import authenticate_request_basic_auth

    found = authenticate_request_basic_auth()
    if request.path == f"/{OPEN}" and not isinstance(found, Response):
        return Response(OPEN_PAGE, mimetype="text/html")
    return found
