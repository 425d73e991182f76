"""The profiles of full-size models, run on small weights in the published layouts."""

from pathlib import Path

import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from core.config import Config, load_config
from core.store import Store
from data.tables import encode_image, write_table
from models.families.vila_u.parity import TOP_K, TOP_P
from tasks.train import METRICS, read_metrics
from tests.commands import hermesflow
from tests.janus_tiny import published_folder
from tests.loops import play
from tests.published import published_parts
from tests.stage_inputs import pool_row
from tests.vila_u_tiny import published_folder as published_vila_u

PROJECT = Path(__file__).parent.parent
SHOW_O, JANUS, VILA_U = (
    [PROJECT / "configs" / f"{name}.yaml" for name in names]
    for names in (
        ("show_o_256", "show_o_512"),
        ("janus_1b", "janus_pro_1b", "janus_pro_7b"),
        ("vila_u_7b_256", "vila_u_7b_384"),
    )
)
FROZEN = ("vision_model.", "gen_vision_model.", "rqvaesiglip.")
STEPS = "sampling.images.steps"
WORDS = ["red", "blue", "big", "small"]


def records(num: int, prefix: str) -> list[dict[str, object]]:
    """Plain pictures with captions and questions in the few words that the small model knows."""
    rows = []
    for number in range(num):
        word = WORDS[number % len(WORDS)]
        image = encode_image(Image.new("RGB", (20, 12), (40 * number % 256, 90, 160)))
        questions = [
            {"type": "color", "question": f"What is the {thing}?", "choices": WORDS, "answer": word}
            for thing in ("cat", "ball", "table")
        ]
        caption = f"a {word} cat on the mat"
        texts = {"prompt": f"a {word} cat", "caption": caption, "references": [caption]}
        more = {"image": image, "questions": questions, "category": ""}
        rows.append(pool_row(f"{prefix}{number}", **texts, **more))
    return rows


def small(profile: Path, tmp_path: Path) -> Config:
    """The profile on a small model, few records and no GPU; the recipe is its own."""
    family = load_config(profile).model.family
    if profile in VILA_U:
        folders = {"--vila-u": published_vila_u(tmp_path / "published", "shards.bin")}
    elif profile in JANUS:
        folders = {"--janus": published_folder(tmp_path / "published", "shards.bin")}
    else:
        parts = published_parts(tmp_path / "published")
        folders = {"--show-o": parts.show_o, "--vq": parts.vq, "--tokenizer": parts.tokenizer}
    given = [text for option, folder in folders.items() for text in (option, str(folder))]
    assert hermesflow(["import", family, *given, "--to", str(tmp_path / "model")]) == 0
    for name, num in (("pool", 10), ("test", 4)):
        write_table(tmp_path / f"{name}.parquet", "pool", records(num, name))
    changes: dict[str, object] = {
        "iterations": 1,
        "store": str(tmp_path / "store"),
        "model.checkpoint": str(tmp_path / "model"),
        "data.pool": str(tmp_path / "pool.parquet"),
        "data.test": str(tmp_path / "test.parquet"),
        "scoring.caption_encoder": str(PROJECT / "models/assets/shapes/caption_encoder"),
        "sampling.captions.max_new_tokens": 8,
        # Random weights are seldom right, but never alike.
        "scoring.image_score": "soft",
        "pairing.image.min_best": 0.0,
        # The small VILA-U is nearly sure of its answers, whatever it sees.
        "pairing.image.min_margin": 0.0 if profile in VILA_U else 0.001,
        "scoring.require_fit": False,
        # Readers would need more than ten pictures.
        "evaluation.judge": "base",
        "tracking.enabled": False,
        "runtime.device": "cpu",
        "runtime.threads": 1,
        "evaluation.bootstrap_samples": 100,
    }
    return load_config(profile, changes | ({STEPS: 4} if profile in SHOW_O else {}))


def exported(folder: Path) -> dict[str, Tensor]:
    """Weights of a published folder: of the network beside an image tokenizer, or of all parts."""
    found: dict[str, Tensor] = {}
    for path in [*folder.glob("*.safetensors")] or folder.rglob("*.safetensors"):
        tensors = load_file(path)
        assert found.keys().isdisjoint(tensors)
        found |= tensors
    return found


@pytest.mark.parametrize(
    "profile",
    [
        pytest.param(SHOW_O[1], id=SHOW_O[1].stem),
        *(pytest.param(one, id=one.stem, marks=pytest.mark.slow) for one in (JANUS[1], VILA_U[0])),
    ],
)
def test_a_published_model_goes_through_the_loop_and_back(profile: Path, tmp_path: Path) -> None:
    config = small(profile, tmp_path)
    runner, table = play(config)
    results = {(name, i): result.ref for name, i, result in runner.done}
    store = Store(config.store)
    trained = store.open(results["train", 1])
    pairs = int(trained.manifest["results"]["pairs"])
    assert pairs > 1
    steps = 3 * -(-pairs // 4)
    assert trained.manifest["results"]["steps"] == steps == len(read_metrics(trained.path(METRICS)))
    captions = store.open(results["sample-captions", 1])
    images = store.open(results["sample-images", 1])
    assert captions.manifest["results"]["rows"] == 10 * 10
    assert images.manifest["results"]["rows"] == 10 * 16
    assert "iteration 1" in table
    target = tmp_path / "exported"
    given = ["export", str(trained.path("model")), "--to", str(target)]
    assert hermesflow(given) == 0
    published = exported(target)
    before = store.open(results["base", 0]).path("model")
    given[1], given[3] = str(before), str(tmp_path / "base")
    assert hermesflow(given) == 0
    base = exported(tmp_path / "base")
    assert published.keys() == base.keys()
    changed = {name for name in base if not base[name].equal(published[name])}
    trainable = {name for name in base if not name.startswith(FROZEN)}
    assert len(changed) > len(trainable) / 2
    assert changed <= trainable


def test_profiles_differ_only_where_the_resolution_matters_and_write_all_out() -> None:
    small, large = (load_config(profile).model_dump() for profile in SHOW_O)
    differing = {name for name in large if small[name] != large[name]}
    assert differing == {"store", "model", "tracking", "runtime"}
    given = yaml.safe_load(SHOW_O[1].read_text(encoding="utf-8"))
    assert set(given) == set(Config.model_fields)


@pytest.mark.parametrize("profile", JANUS, ids=lambda path: path.stem)
def test_profiles_of_janus_sample_as_published(profile: Path) -> None:
    config = load_config(profile)
    images = config.sampling.images
    assert (images.guidance + 1, images.temperature, images.top_k) == (5.0, 1.0, None)
    assert {(s.temperature, s.top_p) for s in config.sampling.captions.settings} > {(0.1, 0.95)}


@pytest.mark.parametrize("profile", VILA_U, ids=lambda path: path.stem)
def test_profiles_of_vila_u_sample_as_published(profile: Path) -> None:
    config = load_config(profile)
    images = config.sampling.images
    assert (images.guidance + 1, images.temperature) == (3.0, 1.0)
    assert (images.top_k, images.top_p) == (TOP_K, TOP_P)
    settings = {(s.temperature, s.top_p) for s in config.sampling.captions.settings}
    assert settings > {(0.9, 0.6), (0.6, 0.9)}


@pytest.mark.parametrize("profile", SHOW_O, ids=lambda path: path.stem)
def test_profiles_hold_the_recipe_of_the_paper(profile: Path) -> None:
    config = load_config(profile)
    settings = [(s.temperature, s.top_k) for s in config.sampling.captions.settings]
    assert settings == [(1.0, 1), *((t, k) for k in (2, 3, 4) for t in (0.1, 0.7, 2.0))]
    images, training = config.sampling.images, config.training
    assert (images.num_samples, images.steps, images.guidance) == (16, 50, 5.0)
    assert (training.batch_size, training.max_steps, training.weight_decay) == (4, 3000, 0.01)
    for branch in (training.objective.caption, training.objective.image):
        assert (branch.beta, branch.weight) == (0.2, 1.0)
    assert training.learning_rate == 2e-5
    assert (config.iterations, config.pairing.image.min_best) == (3, 0.6)
