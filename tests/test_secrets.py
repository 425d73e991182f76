"""Secrets of the environment are nowhere in what a run says, stores or tracks."""

import logging
from pathlib import Path

import pytest

from core.command import run_command
from core.config import load_config
from core.errors import UserError
from core.secrets import masked
from services.endpoint import KEY_VARIABLE, Client
from tests.limits import ROOT, free_port, run_python
from tests.llm_server import Server, endpoint
from tests.stage_inputs import QUICK
from tracking.connection import find_problem, without_user

KEY, SECRET, PASSWORD = "sk-1234567890abcdef", "aws-secret-0987654321", "pass-word-5555"
RUN = """
import sys
from core.runtime import setup_logging
from tests.loops import play, quick
setup_logging()
play(quick(sys.argv[1], iterations=1, tracking__enabled=True, evaluation__judge="endpoint",
           evaluation__endpoint={"url": sys.argv[2], "model": "shapes", "serve": None,
           "concurrency": 4, "timeout_seconds": 30.0, "retries": 3}))
"""


@pytest.mark.slow
def test_a_whole_run_leaves_no_secret_behind(
    server: Server, tmp_path: Path, mlflow_uri: str
) -> None:
    """Store, tracking database, its files and all output are searched, byte by byte."""
    secrets = {KEY_VARIABLE: KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "POSTGRES_PASSWORD": PASSWORD}
    model = endpoint(server).model
    script = RUN.replace('"shapes"', repr(model))
    secrets["PYTHONPATH"] = f"{ROOT}:{ROOT / 'tests'}"
    done = run_python("-c", script, tmp_path / "store", server.url, **secrets)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-2000:]
    assert f"Bearer {KEY}" in server.keys, "the key was not used"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 50
    for secret in (KEY, SECRET, PASSWORD):
        assert secret not in output
        assert not [path for path in files if secret.encode() in path.read_bytes()]


def test_a_server_that_repeats_the_key_is_not_quoted(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with Client(endpoint(server), "judge") as client:
        server.faults.extend([401] * 9)
        server.refusal = f"Incorrect API key provided: {KEY}"
        with pytest.raises(UserError, match=r"Incorrect API key provided: \*\*\*") as error:
            client.weigh("is it red?", ["yes", "no"], seed=1)
    assert KEY not in str(error.value)

    def command() -> None:
        raise UserError(f"cannot log in with {KEY}")

    assert run_command(command) == 2
    assert KEY not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"compute.docker.environment": {"HF_TOKEN": KEY}}, "HF_TOKEN is a secret"),
        ({"compute.kubernetes.environment": {"MY_API_KEY": KEY}}, "MY_API_KEY is a secret"),
        (
            {
                "evaluation.endpoint": {
                    **endpoint("http://host/v1").model_dump(),
                    "url": f"http://me:{PASSWORD}@host/v1",
                }
            },
            "without user or key",
        ),
    ],
)
def test_secrets_in_a_config_are_refused_and_not_repeated(
    changes: dict[str, object], said: str
) -> None:
    with pytest.raises(UserError, match=said) as error:
        load_config(QUICK, changes)
    assert KEY not in str(error.value)
    assert PASSWORD not in str(error.value)


def test_tracking_servers_are_named_without_their_password() -> None:
    problem = find_problem(f"http://me:{PASSWORD}@127.0.0.1:{free_port()}")
    assert "no MLflow server answers" in problem
    assert PASSWORD not in problem
    assert without_user(f"https://me:{PASSWORD}@host:5000/x") == "https://host:5000/x"


def test_log_lines_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", KEY)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "falsely")
    assert masked(f"{KEY} s3://me:{PASSWORD}@host/x falsely") == "*** s3://***@host/x falsely"
    code = (
        "import logging\nfrom core.runtime import setup_logging\nsetup_logging()\n"
        f"logging.getLogger('x').warning('it is %s', '{KEY}')"
    )
    assert "it is ***" in run_python("-c", code).stderr
    assert logging.getLogger("x").level == logging.NOTSET
