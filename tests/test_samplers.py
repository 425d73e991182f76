"""What images are drawn from, code by code."""

import pytest
import torch

from models.protocol import (
    Autoregressive,
    MaskPredict,
    image_sampling,
    sampling_from,
    sampling_settings,
)
from models.samplers.autoregressive import code_probabilities, draw_codes, guided
from models.samplers.noise import RecordNoise

LOGITS = torch.tensor([[2.0, 1.0, 1.0, 0.0]]).log_softmax(dim=1)
PROBS = LOGITS.exp()[0]


def probabilities(**how: float) -> list[float]:
    [probs_C] = code_probabilities(LOGITS, Autoregressive(0.0, **how))  # type: ignore[arg-type]
    assert float(probs_C.sum()) == pytest.approx(1)
    found: list[float] = probs_C.tolist()
    return found


def test_without_limits_codes_are_drawn_from_the_network() -> None:
    assert probabilities() == pytest.approx(PROBS.tolist())
    assert probabilities(top_k=9, top_p=1.0) == pytest.approx(PROBS.tolist())


def test_temperature_acts_before_top_k_and_ties_are_kept() -> None:
    hot = (LOGITS / 2).softmax(dim=1)[0]
    assert probabilities(temperature=2.0) == pytest.approx(hot.tolist())
    first, second, third, last = probabilities(temperature=2.0, top_k=2)
    assert last == 0
    assert (second, third) == pytest.approx((float(hot[1] / hot[:3].sum()),) * 2)
    assert first == pytest.approx(float(hot[0] / hot[:3].sum()))


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    most = float(PROBS[0])
    assert probabilities(top_p=most * 0.99)[1:] == [0, 0, 0]
    assert [p > 0 for p in probabilities(top_p=most * 1.01)] == [True, True, False, False]
    assert [p > 0 for p in probabilities(top_p=1e-9)] == [True, False, False, False]


def test_guidance_pushes_away_from_the_empty_prompt() -> None:
    conditional, unconditional = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    both = torch.cat((conditional, unconditional))
    torch.testing.assert_close(guided(both, 2.0), torch.tensor([[3.0, -2.0]]))
    assert guided(conditional, 0.0) is conditional


def test_each_code_is_drawn_given_the_one_before() -> None:
    """A network that says what must come next."""
    seen: list[list[int] | None] = []

    def next_logits(last_R: torch.Tensor | None) -> torch.Tensor:
        seen.append(None if last_R is None else last_R.tolist())
        wanted = torch.tensor([0, 3]) if last_R is None else (last_R + 1) % 4
        return torch.where(torch.nn.functional.one_hot(wanted, 4).bool(), 0.0, -torch.inf)

    noise = RecordNoise([1, 2], 1, 4, 1, torch.device("cpu"))
    codes_RN = draw_codes(next_logits, 4, Autoregressive(0.0), noise)
    assert codes_RN.tolist() == [[0, 1, 2, 3], [3, 0, 1, 2]]
    assert seen == [None, [0, 3], [1, 0], [2, 1]]


@pytest.mark.parametrize("how", [MaskPredict(8, 1.5), Autoregressive(4.0, 0.9, None, 0.95)])
def test_settings_survive_json(how: MaskPredict | Autoregressive) -> None:
    assert sampling_from(sampling_settings(how)) == how


def test_settings_come_from_the_section_of_a_config() -> None:
    class Section:
        sampler, guidance, temperature, top_k, top_p = "autoregressive", 4.0, 1.0, 50, None
        num_samples = 3

    assert image_sampling(Section()) == Autoregressive(4.0, 1.0, 50, None)
