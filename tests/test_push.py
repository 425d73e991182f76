"""`hermesflow push`: a checkpoint on a hub of this machine, by the real client, and back again."""

import base64
import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants

from core.errors import UserError
from core.store import Store
from flows.reporting import run_record_of
from flows.sharing import push
from models.families.showo.model import ShowoModel
from tests.commands import hermesflow
from tests.llm_server import serving
from tests.loops import Finished, quick

# By the client, when it sends a large file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
REPOSITORY = "me/my-model"


class Hub(BaseHTTPRequestHandler):
    """Takes what the client sends: small files in a commit, large ones by their sha256."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    objects: dict[str, bytes]
    commits: list[str]
    asked: list[dict[str, object]]
    refuses = 0

    def log_message(self, *_: object) -> None:
        """Keep the output of tests free of requests."""

    def do_PUT(self) -> None:
        content = self._body()
        self.objects[hashlib.sha256(content).hexdigest()] = content
        self._reply({})

    def do_POST(self) -> None:
        body = self._body()
        if self.refuses:
            self._reply({"error": "no"}, self.refuses)
        elif self.path == "/api/repos/create":
            self.asked.append(json.loads(body))
            self._reply({"url": f"{self._root()}/{REPOSITORY}", "name": REPOSITORY})
        elif self.path == "/api/validate-yaml":
            self._reply({"errors": [], "warnings": []})
        elif self.path.endswith("/preupload/main"):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self._reply({"files": files})
        elif self.path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            objects = [
                {**one, "actions": {"upload": {"href": f"{self._root()}/lfs/{one['oid']}"}}}
                for one in wanted
            ]
            self._reply({"transfer": "basic", "objects": objects})
        elif self.path.endswith("/commit/main"):
            self._commit(body)
        else:
            self._reply({"error": self.path}, 404)

    def do_GET(self) -> None:
        self._reply({"id": REPOSITORY, "sha": "a" * 40, "siblings": []})

    def _commit(self, body: bytes) -> None:
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.files[value["path"]] = self.objects[value["oid"]]
            else:
                self.commits.append(value["summary"])
        url = f"{self._root()}/{REPOSITORY}/commit/{'b' * 40}"
        self._reply({"commitUrl": url, "commitOid": "b" * 40, "success": True})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _root(self) -> str:
        return "http://{}:{}".format(*self.server.server_address[:2])

    def _reply(self, document: object, status: int = 200) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """An empty hub, to which the client is led."""
    empty = {"files": {}, "objects": {}, "commits": [], "asked": []}
    handler = type("EmptyHub", (Hub,), empty)
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as server:
        address = "http://{}:{}".format(*server.server_address[:2])
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", address, raising=False)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield handler


def test_a_checkpoint_arrives_whole_with_card_report_and_results(
    finished: Finished, hub: type[Hub], tmp_path: Path
) -> None:
    config = quick(finished[0], iterations=2)
    push(config, "quick.yaml", REPOSITORY, iteration=1, private=True)
    assert hub.commits == ["HermesFlow: iteration 1"]
    assert hub.asked[0]["visibility"] == "private", hub.asked
    for name, content in hub.files.items():
        place = tmp_path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    version = run_record_of(config, Store(config.store), "").versions[1]
    sent = ShowoModel.from_pretrained(tmp_path).network.state_dict()
    kept = Store(config.store).open(version.checkpoint).path("model")
    for name, tensor in ShowoModel.from_pretrained(kept).network.state_dict().items():
        assert tensor.equal(sent[name])
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(card.split("---")[1])
    assert header["model-index"][0]["name"] == "hermesflow-showo-iteration-1"
    assert f"hf download {REPOSITORY} --local-dir my/model" in card
    assert "checkpoint: my/model" in card
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert list(found["versions"]) == ["base", "iteration 1"]
    assert found["checkpoint"] == version.checkpoint.digest
    gaps = [
        row for row in found["versions"]["iteration 1"]["metrics"]
        if (row["name"], row["group"]) == ("gap", "all")
    ]  # fmt: skip
    assert gaps[0]["low"] <= gaps[0]["value"] <= gaps[0]["high"]
    assert "shapes-pope" in found["versions"]["base"]["benchmarks"]
    assert "iteration 2" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_dry_run_sends_nothing(
    finished: Finished, hub: type[Hub], capsys: pytest.CaptureFixture[str]
) -> None:
    config = quick(finished[0], iterations=2)
    push(config, "quick.yaml", REPOSITORY, layout="published", dry_run=True)
    shown = capsys.readouterr().out
    assert "magvitv2/pytorch_model.safetensors" in shown
    assert f"to {REPOSITORY}" in shown
    assert not hub.files
    assert not hub.asked


def test_what_cannot_be_pushed_says_why(
    finished: Finished, hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick(finished[0], iterations=2)
    with pytest.raises(UserError, match="--iteration 7: the run has come to iteration 2"):
        push(config, "quick.yaml", REPOSITORY, iteration=7)
    with pytest.raises(UserError, match=r"a/b/c is no name of the hub .*give OWNER/NAME"):
        push(config, "quick.yaml", "a/b/c", iteration=0)
    hub.refuses = 403
    with pytest.raises(UserError, match=r"the hub refuses \(403\); run `hf auth login`"):
        push(config, "quick.yaml", REPOSITORY, iteration=0)
    assert not hub.files
    hub.refuses = 400
    with pytest.raises(UserError, match="the hub failed"):
        push(config, "quick.yaml", REPOSITORY, iteration=0)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="the hub cannot be reached"):
        push(config, "quick.yaml", REPOSITORY, iteration=0)


def test_a_run_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "my.yaml"
    config = {"extends": str(Path("pipeline.yaml").resolve()), "store": str(tmp_path / "store")}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    assert hermesflow(["push", REPOSITORY, str(path)]) == 2
    assert f"has no run of {path} with seed 0" in capsys.readouterr().err
