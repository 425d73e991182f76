"""Decoding with caches and shared prefixes gives what plain forwards give, in any batch."""

import numpy as np
import pytest
import torch
from showo_tiny import random_codes, tiny_model

from models.families.showo.likelihood import image_root, instruction
from models.families.showo.masks import mmu_attention, t2i_attention
from models.families.showo.network import Showo
from models.families.showo.prompts import mmu_instruction, t2i_prompt, t2i_row
from models.families.showo.sampler import generate_images
from models.nn.packing import Segment, Tree
from models.protocol import MaskPredict, Seen, TextSampling
from models.samplers import text as decoding
from models.samplers.mask_predict import mask_lengths, remask
from models.samplers.noise import GeneratorNoise, RecordNoise, ReplayNoise
from models.samplers.prefixes import generate_text
from models.samplers.text import TopK

MODEL = tiny_model()
SPECIAL = MODEL.tokenizer.special
NEVER = -1
SAMPLINGS = [
    TextSampling(1.0, 1, 9),
    TextSampling(0.7, 4, 9),
    TextSampling(2.0, None, 9),
    TextSampling(0.1, 2, 5),
]


def prefixes() -> list[Tree]:
    """Two images with questions of different lengths."""
    codes_BN = random_codes(2, 16) + MODEL.config.image_offset
    questions = ["What is the cat on?", "A cat?"]
    return [
        [
            image_root(codes_N, SPECIAL),
            Segment(mmu_instruction(MODEL.tokenizer, question), parent=0),
        ]
        for codes_N, question in zip(codes_BN, questions, strict=True)
    ]


def text_noise(*seeds: int, samples: int = len(SAMPLINGS)) -> RecordNoise:
    return RecordNoise(seeds or (3, 4), samples, 9, 1, torch.device("cpu"))


def plain_logits(network: Showo, ids_T: list[int], attend: torch.Tensor) -> torch.Tensor:
    ids_1T = torch.tensor([ids_T])
    with torch.no_grad():
        return network.logits(network(ids_1T, attend, torch.arange(len(ids_T))[None]))[0]


def test_text_from_the_shared_cache_equals_uncached_decoding() -> None:
    texts = generate_text(MODEL.network, prefixes(), SAMPLINGS, NEVER, text_noise(), SPECIAL.pad)
    for tree, seed, samples in zip(prefixes(), [3, 4], texts, strict=True):
        prefix = [int(i) for segment in tree for i in segment.ids]
        draws_KT = torch.rand(4, 9, 1, generator=torch.Generator().manual_seed(seed))[:, :, 0]
        for sampling, draws_T, sample in zip(SAMPLINGS, draws_KT, samples, strict=True):
            assert len(sample) == sampling.max_new_tokens
            cut = TopK([sampling], MODEL.config.vocab_size, torch.device("cpu"))
            ids = list(prefix)
            for draw in draws_T[: sampling.max_new_tokens]:
                attend = mmu_attention(torch.tensor([ids]), SPECIAL)
                logits_V = plain_logits(MODEL.network, ids, attend)[-1]
                probs_V = cut(logits_V[None, None])[0, 0]
                ids.append(int((probs_V.cumsum(0) <= draw * probs_V.sum()).sum()))
            assert sample == ids[len(prefix) :]


def test_a_sample_ends_with_its_stop_token() -> None:
    greedy = SAMPLINGS[:1]
    free = generate_text(
        MODEL.network, prefixes(), greedy, NEVER, text_noise(samples=1), SPECIAL.pad
    )
    stop = free[0][0][4]
    stopped = generate_text(
        MODEL.network, prefixes(), greedy, stop, text_noise(samples=1), SPECIAL.pad
    )
    assert stopped[0][0] == free[0][0][: free[0][0].index(stop) + 1]


def test_decoding_stops_early_when_all_rows_have() -> None:
    class Counting(RecordNoise):
        calls = 0

        def categorical(self, probs_RNC: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return super().categorical(probs_RNC)

    tree, greedy = prefixes()[:1], [TextSampling(1.0, 1, 50)]
    free = generate_text(
        MODEL.network, tree, SAMPLINGS[:1], NEVER, text_noise(3, samples=1), SPECIAL.pad
    )
    noise = Counting([3], 1, 50, 1, torch.device("cpu"))
    generate_text(MODEL.network, tree, greedy, free[0][0][0], noise, SPECIAL.pad)
    assert noise.calls == 1


def test_samples_are_the_same_however_often_it_is_asked_whether_they_have_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = generate_text(MODEL.network, prefixes(), SAMPLINGS, NEVER, text_noise(), SPECIAL.pad)
    stop = free[0][1][2]
    often = generate_text(MODEL.network, prefixes(), SAMPLINGS, stop, text_noise(), SPECIAL.pad)
    monkeypatch.setattr(decoding, "steps_between_stops", lambda device: 4)
    rarely = generate_text(MODEL.network, prefixes(), SAMPLINGS, stop, text_noise(), SPECIAL.pad)
    assert rarely == often
    assert rarely != free


def test_top_k_keeps_ties_and_applies_to_each_sample() -> None:
    logits_BKV = torch.tensor([[[3.0, 2.0, 2.0, 1.0]] * 3])
    settings = [TextSampling(1.0, 1), TextSampling(0.5, 2), TextSampling(1.0, None)]
    probs = TopK(settings, 4, torch.device("cpu"))(logits_BKV)[0]
    assert probs[0].tolist() == [1, 0, 0, 0]
    assert probs[1].tolist() == pytest.approx(
        [*torch.tensor([6.0, 4.0, 4.0]).softmax(0).tolist(), 0.0]
    )
    assert (probs[2] > 0).all()


def prompts(*texts: str) -> list[np.ndarray]:
    encode, budget = MODEL.tokenizer.encode, MODEL.config.max_text_len
    return [t2i_prompt(encode(text), SPECIAL, budget) for text in texts]


def image_noise(*seeds: int, samples: int, steps: int) -> RecordNoise:
    return RecordNoise(seeds, samples, 2 * steps, 16, torch.device("cpu"))


def uncached_images(
    texts: list[np.ndarray], sampling: MaskPredict, noise: RecordNoise
) -> torch.Tensor:
    """The same algorithm on whole padded rows, as in the published layout."""
    config, network = MODEL.config, MODEL.network
    unknown = torch.ones(len(texts), 16, dtype=torch.bool)
    codes = torch.zeros(len(texts), 16, dtype=torch.long)
    temperature = sampling.temperature
    for step in range(sampling.steps):
        image = torch.where(unknown, config.mask_token_id, codes + config.image_offset).numpy()
        logits = []
        for rows in (texts, prompts("") * len(texts)):
            padded = [
                t2i_row(text, ids, ids, SPECIAL, config.max_text_len)[0]
                for text, ids in zip(rows, image, strict=True)
            ]
            ids_BT = torch.from_numpy(np.stack(padded))
            with torch.no_grad():
                attend = t2i_attention(ids_BT, SPECIAL)
                hidden = network(ids_BT, attend, torch.arange(ids_BT.shape[1])[None])
                logits.append(network.logits(hidden)[:, -17:-1, config.image_columns])
        guided = (1 + sampling.guidance) * logits[0] - sampling.guidance * logits[1]
        probs = guided.softmax(-1)
        codes = torch.where(unknown, noise.categorical(probs), codes)
        ratio = (step + 1) / sampling.steps
        temperature *= 1 - ratio
        chosen = probs.gather(-1, codes[..., None])[..., 0]
        chosen = chosen.masked_fill(~unknown, torch.finfo(torch.float32).max)
        length = mask_lengths(ratio, unknown)
        unknown = remask(chosen, noise.uniform(chosen), temperature, length)
    return codes


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_images_from_the_prompt_cache_equal_uncached_decoding(guidance: float) -> None:
    texts = prompts("a red cat", "the dog and the cat on the mat", "a")
    sampling = MaskPredict(6, guidance)
    noise = image_noise(1, 2, 3, samples=1, steps=6)
    cached = generate_images(MODEL.network, texts, 1, sampling, noise, SPECIAL)
    noise = image_noise(1, 2, 3, samples=1, steps=6)
    assert cached.tolist() == uncached_images(texts, sampling, noise).tolist()


def test_given_codes_are_kept() -> None:
    given_RN = torch.full((2, 16), -1)
    given_RN[:, 3:9] = 17
    noise = image_noise(1, samples=2, steps=4)
    texts, sampling = prompts("a cat"), MaskPredict(4, 1.0)
    codes = generate_images(MODEL.network, texts, 2, sampling, noise, SPECIAL, given_RN)
    assert (codes[:, 3:9] == 17).all()
    assert given_RN[0, 0] == -1


def test_fewer_tokens_stay_masked_at_each_step() -> None:
    unknown = torch.ones(1, 16, dtype=torch.bool)
    lengths = [int(mask_lengths(step / 8, unknown)) for step in range(1, 9)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] == 1


def test_drawn_categories_follow_the_probabilities() -> None:
    probs = torch.tensor([0.0, 0.5, 0.0, 0.25, 0.25, 0.0]).expand(2, 4000, 6)
    for noise in (
        RecordNoise([0, 1], 1, 1, 4000, torch.device("cpu")),
        GeneratorNoise(torch.Generator().manual_seed(0)),
    ):
        counts = torch.bincount(noise.categorical(probs).flatten(), minlength=6) / 8000
        torch.testing.assert_close(counts, probs[0, 0], rtol=0, atol=0.02)


def test_replayed_numbers_pick_the_winner_of_the_race() -> None:
    probs = torch.tensor([[[0.5, 0.5, 0.0]]])
    noise = ReplayNoise(torch.tensor([[[1.0, 0.1, 1e-6]]]))
    assert noise.categorical(probs).tolist() == [[1]]


def test_replies_are_the_greedy_continuations_of_each_question() -> None:
    """Questions of different lengths share an image prefix and get what each gets alone."""
    model = tiny_model()
    codes = np.random.default_rng(0).integers(0, model.config.codebook_size, (2, 16))
    asked = [
        [("a red cat", ["a"]), ("the dog and the blue ball on the mat", ["a"])],
        [("a", ["a"])],
    ]
    together = model.reply(Seen(codes), asked)
    for image, questions in enumerate(asked):
        for index, question in enumerate(questions):
            alone = model.reply(Seen(codes[image : image + 1]), [[question]])
            assert together[image][index] == alone[0][0]
            special = model.tokenizer.special
            tree = [
                image_root(codes[image] + model.config.image_offset, special),
                Segment(instruction(model.tokenizer, model.config, *question), parent=0),
            ]
            greedy = [TextSampling(1.0, 1, model.config.max_text_len)]
            noise = RecordNoise([0], 1, model.config.max_text_len, 1, model.device)
            ids = generate_text(model.network, [tree], greedy, special.eos, noise, special.pad)
            assert model.tokenizer.decode(ids[0][0]) == together[image][index]
