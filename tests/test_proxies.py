"""What is near is reached directly: proxies of the environment know nothing of this machine."""

import os
from pathlib import Path

import httpx
import pytest

from core.proxies import go_past_proxies, is_near, past_proxies
from services.endpoint import Client
from tests.limits import ROOT, run_python
from tests.llm_server import Server, endpoint, llm_server
from tracking.connection import find_problem

PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of a company's network, and no exception from them."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in PROXIES:
        monkeypatch.setenv(name, NOWHERE)


@pytest.mark.usefixtures("proxied")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_language_model_on_this_machine_is_asked_directly(server: Server, host: str) -> None:
    url = server.url.replace("127.0.0.1", host)
    with Client(endpoint(url), "judge") as client:
        assert client.take_counts()["requests"] == 1


@pytest.mark.usefixtures("proxied")
def test_a_language_model_elsewhere_is_asked_through_the_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with llm_server() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        with Client(endpoint("http://llm.example.com/v1"), "judge") as client:
            assert client.take_counts()["requests"] == 1


@pytest.mark.usefixtures("proxied")
def test_an_mlflow_server_on_this_machine_is_found(server: Server) -> None:
    assert find_problem(server.url.removesuffix("/v1")) == ""


@pytest.mark.parametrize(
    ("url", "near"),
    [
        ("http://127.0.0.1:5000", True),
        ("http://127.8.9.1/x", True),
        ("http://[::1]:5000", True),
        ("http://localhost/v1", True),
        ("http://prefect:4200/api", True),  # a service of the same network of containers
        ("http://0.0.0.0:1", True),
        ("https://api.example.com/v1", False),
        ("http://10.0.0.5:5000", False),
        ("http://127.0.0.1.example.com", False),
        ("sqlite:///mlflow.db", False),
        ("", False),
        ("http://[bad", False),
    ],
)
def test_what_is_near(url: str, near: bool) -> None:
    assert is_near(url) == near


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "localhost,127.0.0.1,::1"),
        (
            {"NO_PROXY": "corp.example, 10.0.0.0/8"},
            "corp.example,10.0.0.0/8,localhost,127.0.0.1,::1",
        ),
        ({"no_proxy": "a", "NO_PROXY": "b"}, "a,localhost,127.0.0.1,::1"),  # as libraries take it
        ({"NO_PROXY": "*"}, "*"),
        ({"MLFLOW_TRACKING_URI": "http://127.0.0.7:5000"}, "localhost,127.0.0.1,::1,127.0.0.7"),
    ],
)
def test_exceptions_of_the_user_stay(given: dict[str, str], expected: str) -> None:
    assert past_proxies(given) == {"no_proxy": expected, "NO_PROXY": expected}


@pytest.mark.usefixtures("proxied")
def test_servers_at_the_name_that_others_know_are_near(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "login1.cluster.example.com"
    assert not is_near(f"http://{name}:4200/api")
    monkeypatch.setenv("HERMESFLOW_HOST", "Login1.cluster.example.com")
    assert is_near(f"http://{name}:4200/api")
    assert name in past_proxies({"HERMESFLOW_HOST": name})["NO_PROXY"].split(",")


@pytest.mark.parametrize("proxy", ["socks://127.0.0.1:1", "socks4://h:1", "ftp://h:1"])
def test_a_proxy_that_would_stop_every_client_is_left_out_and_named(proxy: str) -> None:
    environment = {"ALL_PROXY": proxy, "http_proxy": "http://proxy:3128"}
    said = go_past_proxies(environment)
    assert said.startswith("ALL_PROXY is left out: a proxy of the kind ")
    assert "ALL_PROXY" not in environment
    assert environment["http_proxy"] == "http://proxy:3128"
    assert go_past_proxies(environment) == ""


def test_commands_say_so_and_work(tmp_path: Path) -> None:
    environment = {"ALL_PROXY": "socks://127.0.0.1:9", "PYTHONPATH": str(ROOT)}
    done = run_python("-P", "-m", "flows.cli", "status", cwd=tmp_path, **environment)
    assert done.returncode == 0
    assert "ALL_PROXY is left out" in done.stderr
    assert "nothing of ours is running" in done.stdout


def test_socks_proxies_are_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    assert go_past_proxies(dict(os.environ)) == ""
    httpx.Client().close()
