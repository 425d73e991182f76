"""A real vLLM server on tiny random models: what our own server of the protocol takes for granted.

Run with `make test-vllm`; the first start takes half a minute on two cores.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from pydantic import BaseModel, Field

from core.config import Endpoint
from core.errors import UserError
from core.stage import run_stage
from core.store import Store
from data.tables import read_table
from services.endpoint import Client, data_url, user_message
from services.question_writer import QuestionWriter
from services.replies import NoAnswer
from services.vllm_server import served
from tasks.questions import QUESTIONS
from tests.llm_server import endpoint
from tests.loops import play, quick
from tests.stage_inputs import make_config, pool_row, publish

pytestmark = pytest.mark.vllm
PYTHON = Path(__file__).parent.parent / ".venv-vllm/bin/python"
ARGUMENTS = [
    *("--enforce-eager", "--dtype", "float32", "--max-model-len", "4096"),
    *("--distributed-executor-backend", "uni"),
]
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "OMP_NUM_THREADS": "1",
}


class Said(BaseModel):
    word: str = Field(min_length=1, max_length=12)
    number: int = Field(ge=0, le=9)


def to_serve(folder: Path) -> Endpoint:
    serve = {
        "model": str(folder),
        "python": str(PYTHON),
        "arguments": ARGUMENTS,
        "environment": ENVIRONMENT,
        "start_seconds": 300.0,
    }
    return endpoint("unused", url=None, serve=serve, timeout_seconds=120.0, model="tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_language_models import save_language_model

    return save_language_model(tmp_path_factory.mktemp("models") / "qwen2")


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Endpoint]:
    with served(to_serve(folder), "judge") as ready:
        yield ready


def test_random_weights_answer_in_the_form_that_was_asked_for(running: Endpoint) -> None:
    message = user_message("Say a word and a number.")
    with Client(running, "judge") as client:
        said = [client.answer(message, Said, max_tokens=200, seed=seed) for seed in range(6)]
        counts = client.take_counts()
    # Random weights may never come to an end; what is cut off three times is given up and counted.
    given_up = [one for one in said if isinstance(one, NoAnswer)]
    assert len(given_up) < len(said)
    assert len(given_up) == counts.get("given_up", 0)
    assert counts["prompt_tokens"] > 0 < counts["completion_tokens"]


def test_what_is_cut_off_is_counted_and_given_up(running: Endpoint) -> None:
    with Client(running, "judge") as client:
        said = client.answer(user_message("Say it."), Said, max_tokens=1, seed=1)
        assert isinstance(said, NoAnswer)
        counts = client.take_counts()
    assert (counts["truncated"], counts["given_up"]) == (3, 1)


def test_choices_have_probabilities_that_no_other_word_takes(running: Endpoint) -> None:
    with Client(running, "judge") as client:
        for num in (2, 4, 10):
            choices = [f"thing {n}" for n in range(num)]
            weights = client.weigh("Which one?", choices, seed=1)
            assert not isinstance(weights, NoAnswer)
            assert sum(weights) == pytest.approx(1.0)
            assert min(weights) > 0
            assert client.weigh("Which one?", choices, seed=1) == pytest.approx(weights, abs=1e-5)
        assert client.take_counts()["weighed"] == 6


def test_pictures_for_a_model_of_text_are_refused_with_its_words(running: Endpoint) -> None:
    picture = data_url(Image.new("RGB", (32, 32)))
    with (
        Client(running, "judge") as client,
        pytest.raises(UserError, match="tiny is not a multimodal model"),
    ):
        client.weigh("What is it?", ["a", "b"], seed=1, picture=picture)


def test_questions_are_written_and_checked(running: Endpoint) -> None:
    """Random weights write nonsense in the right form, and the checks drop most of it."""
    with Client(running, "questions") as client:
        writer = QuestionWriter(client, per_record=1, min_f1=0.6)
        found = list(
            client.map(lambda i: writer.candidates(f"r{i}", f"a red ball {i}", []), range(8))
        )
    written = [candidate for candidates in found for candidate in candidates]
    assert written
    assert all(c.question and c.type and c.choices for c in written)
    assert sum(bool(c.reason) for c in written) > len(written) / 2


def test_the_stage_starts_its_server_and_ends_it(folder: Path, tmp_path: Path) -> None:
    settings = {
        "endpoint": to_serve(folder).model_dump(),
        "per_record": 1,
        "min_f1": 0.6,
        "max_without": 1.0,
    }
    store = Store(str(tmp_path / "store"))
    records = [pool_row(f"r{i}", caption=f"a red ball {i}", questions=[]) for i in range(3)]
    pool = publish(store, "pool", [records])
    done = run_stage(QUESTIONS, make_config(questions=settings), store, {"pool": pool})
    artifact = store.open(done.ref)
    assert artifact.manifest["results"]["records"] == 3
    assert artifact.manifest["results"]["endpoint/requests"] >= 4
    assert read_table(artifact.parts(), "pool").num_rows == 3


def test_a_model_that_sees_judges_a_checkpoint(tmp_path: Path) -> None:
    """The stage starts a server with a vision-language model, and its answers are those of G."""
    from tests.tiny_language_models import save_vision_language_model

    judge = to_serve(save_vision_language_model(tmp_path / "idefics3"))
    settings = {"evaluation__judge": "endpoint", "evaluation__endpoint": judge.model_dump()}
    config = quick(tmp_path / "store", iterations=0, data__test_records=6, **settings)
    runner, _ = play(config)
    [evaluation] = [result.ref for name, _, result in runner.done if name == "evaluate"]
    artifact = Store(config.store).open(evaluation)
    parts = [artifact.path(name) for name in artifact.names("answers/")]
    answers = read_table(parts, "eval_answers").to_pandas()
    drawn = answers[answers["subject"] == "generated"]
    assert (drawn["prediction"] != "").all()
    results = artifact.manifest["results"]
    assert results["endpoint/weighed"] == len(drawn)
    assert 0 < results["agreement"] < 1
    with served(judge, "judge") as ready, Client(ready, "judge") as client:
        weights = [
            client.weigh(
                "Is it red?", ["yes", "no"], seed=1, picture=data_url(Image.new("RGB", (64, 64), c))
            )
            for c in ("black", "white")
        ]
    assert weights[0] != pytest.approx(weights[1], abs=1e-4)
