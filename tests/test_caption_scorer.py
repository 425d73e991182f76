"""The shipped caption encoder ranks right captions above nearly right ones."""

from dataclasses import replace
from pathlib import Path

import pytest

from data.shapes.language import Mention, Prompt, retell
from models.caption_scorer import CaptionScorer
from tasks.pretrain.caption_encoder import f1_matrix

ENCODER = Path(__file__).parent.parent / "models/assets/shapes/caption_encoder"
TRUE = "a small red circle left of a large blue square"


@pytest.fixture(scope="module")
def scorer() -> CaptionScorer:
    return CaptionScorer(ENCODER, "cpu")


def test_paraphrase_scores_above_every_mistake(scorer: CaptionScorer) -> None:
    paraphrase = "a large blue square right of a small red circle"
    mistakes = [
        "a large blue square left of a small red circle",  # roles swapped
        "a large blue circle left of a small red square",  # attributes swapped
        "a small green circle left of a large blue square",
        "two small red circles left of a large blue square",
        "a small red circle",
        "",
    ]
    right, *wrong = scorer.score([paraphrase, *mistakes], [[TRUE]] * (1 + len(mistakes)))
    assert right > 0.9
    assert max(wrong) < right - 0.05


def test_the_nearest_of_several_references_counts(scorer: CaptionScorer) -> None:
    alone, both = scorer.score(["a black dome"] * 2, [[TRUE], [TRUE, "a black dome"]])
    assert both == pytest.approx(1.0, abs=1e-5)
    assert both > alone


def test_empty_caption_has_the_lowest_score(scorer: CaptionScorer) -> None:
    assert scorer.score([""], [[TRUE]]) == [-1.0]


def test_a_target_is_the_f1_of_the_facts_that_two_captions_state() -> None:
    one = Mention(1, "small", "red", "circle")
    other = Mention(1, "large", "blue", "square")
    said = Prompt((one, other), "left of")
    swapped = Prompt((replace(one, color="blue"), replace(other, color="red")), "left of")
    target = f1_matrix([said, retell(said), Prompt((other, one), "left of"), swapped])
    assert target[0].tolist() == pytest.approx([1.0, 1.0, 12 / 15, 11 / 15])
