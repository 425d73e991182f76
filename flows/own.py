"""`hermesflow own`: from pictures with captions to a running loop.

Makes a pool with a held-out test set, writes a config beside it and runs self-play with it, with
questions by rules and readers as the judge, so that neither a language model nor another judge is
needed. Killed, the same command goes on. The config is the user's to change afterwards.
"""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from core.command import moved
from core.config import load_config, schema
from core.errors import UserError
from data.ingest.command import Collection, make_pool
from flows import local

CONFIG, DATA = "config.yaml", "data"
TEST_SHARE = 0.1
# Profiles by the number of image tokens; models of other sizes take the built-in world's.
PROFILES = {1024: "configs/show_o_512.yaml", 256: "configs/show_o_256.yaml"}
DEFAULT = "pipeline.yaml"
# By pixels of a picture and width; Janus-1.3B has the sizes of Janus-Pro-1B.
JANUS_PROFILES = {
    (384, 2048): "configs/janus_pro_1b.yaml",
    (384, 4096): "configs/janus_pro_7b.yaml",
}
JANUS_DEFAULT = "configs/shapes_janus.yaml"
# By pixels of a picture that is read.
VILA_U_PROFILES = {256: "configs/vila_u_7b_256.yaml", 384: "configs/vila_u_7b_384.yaml"}
VILA_U_DEFAULT = "configs/shapes_vila_u.yaml"


def run(
    pictures: str, checkpoint: Path, encoder: Path | None, to: Path, iterations: int | None
) -> None:
    """Make the pool and the config unless they are there, and run the loop."""
    local.pipeline(str(prepare(pictures, checkpoint, encoder, to)), iterations, None, False)


def prepare(pictures: str, checkpoint: Path, encoder: Path | None, to: Path) -> Path:
    """The pool and the config in `to`, made unless they are there; the path of the config.

    Without an encoder captions are compared by the one that the profile names. UserError for a
    config that is there and names another.
    """
    profile = profile_of(checkpoint)
    path = to / CONFIG
    if encoder and path.is_file():
        named = load_config(path).scoring.caption_encoder
        if Path(named).resolve() != encoder.resolve():
            raise UserError(
                f"{path} is there already and has scoring.caption_encoder: {named}; change it "
                f"there, or leave out --encoder {encoder}"
            )
    if not (to / DATA / "test").is_dir():
        try:
            make_pool(Collection(pictures, to / DATA, test_share=TEST_SHARE))
        except UserError as error:
            raise UserError(
                f"no pool was made of {pictures}: {error}. `hermesflow ingest --help` shows how "
                "fields of other names are given"
            ) from None
    if not path.is_file():
        text = yaml.safe_dump(settings(profile, checkpoint, encoder, to), sort_keys=False)
        path.write_text(f"{schema.MODELINE}{schema.FILE}\n{text}", encoding="utf-8")
        print(f"{path} is yours to change")
    return path


def profile_of(checkpoint: Path) -> Path:
    """The profile that fits a model folder; UserError if it is none."""
    try:
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        if config.get("model_type") == "janus":
            pictures = config["vision_config"]["image_size"]
            size = (int(pictures), int(config["text_config"]["hidden_size"]))
            return Path(JANUS_PROFILES.get(size, JANUS_DEFAULT)).resolve()
        if config.get("model_type") == "vila_u":
            pictures = int(config["siglip"]["image_size"])
            return Path(VILA_U_PROFILES.get(pictures, VILA_U_DEFAULT)).resolve()
        tokens = int(config["num_vq_tokens"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--checkpoint {checkpoint} is no model folder ({type(error).__name__}: {error}); give "
            "one that `hermesflow import` has made"
        ) from None
    return Path(PROFILES.get(tokens, DEFAULT)).resolve()


def settings(profile: Path, checkpoint: Path, encoder: Path | None, to: Path) -> dict[str, object]:
    """What a config of one's own pictures says beside its profile."""
    data = (to / DATA).resolve()
    scoring = {"scoring": {"caption_encoder": str(encoder.resolve())}} if encoder else {}
    return {
        "extends": str(profile),
        "store": str((to / "store").resolve()),
        "model": {"checkpoint": str(checkpoint.resolve())},
        "data": {"source": "parquet", "pool": str(data / "pool"), "test": str(data / "test")},
        **scoring,
        "questions": {"by": "captions", "endpoint": None, "per_record": 6, "max_without": 0.1},
        "evaluation": {"judge": "reader"},
        "benchmarks": [],
        "tracking": {"registered_model": f"hermesflow-{to.resolve().name}"},
    }


if __name__ == "__main__":
    moved("own")
