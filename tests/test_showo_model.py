"""The whole model: folders, images, answers, pairs."""

import copy
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from showo_tiny import QUESTIONS, pair_batch, random_codes, tensors, tiny_model
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import UserError
from models.families.showo.config import ShowoConfig
from models.families.showo.likelihood import PairModule, TokenLogps
from models.families.showo.model import ShowoModel
from models.families.showo.network import Showo
from models.nn import token_logps as heads
from models.nn.packing import pack, sum_logps
from models.nn.pairs import choice_logps
from models.protocol import MODALITIES, MaskPredict, PairBatch, Seen, TextSampling
from models.registry import autocast
from training.sharding import recompute

MODEL = tiny_model()
IMAGE = MaskPredict(4, 2.0)


def test_a_model_loads_in_half_precision(tmp_path: Path) -> None:
    MODEL.save_pretrained(tmp_path)
    loaded = ShowoModel.from_pretrained(tmp_path, dtype="bfloat16")
    assert loaded.network.showo.lm_head.weight.dtype == torch.bfloat16
    logps, wanted = (
        model.pair_logps(pair_batch(), "image").chosen_logps_B for model in (loaded, MODEL)
    )
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps, wanted, rtol=0.05, atol=1.0)


def test_a_tokenizer_of_another_size_is_refused() -> None:
    config = replace(MODEL.config, llm_vocab_size=199)
    with pytest.raises(UserError, match="210 tokens"):
        ShowoModel(Showo(config), MODEL.vq, MODEL.tokenizer)


def test_config_survives_json(tmp_path: Path) -> None:
    config = replace(MODEL.config, w_clip_vit=True, list_choices=True)
    config.to_json(tmp_path / "config.json")
    assert ShowoConfig.from_json(tmp_path / "config.json") == config


def test_decoded_pixels_are_clipped_and_truncated() -> None:
    codes = random_codes(1, 16)
    pixels = MODEL.vq.decode_code(tensors(codes)).detach()[0]
    wanted = np.floor(np.clip((pixels.numpy() + 1) / 2, 0, 1) * np.float32(255)).transpose(1, 2, 0)
    image = MODEL.decode(codes)[0]
    assert (np.asarray(image) == wanted).all()
    image.save(io.BytesIO(), "PNG")


@pytest.mark.parametrize("list_choices", [False, True])
def test_choices_of_a_shared_row_score_as_in_rows_of_their_own(list_choices: bool) -> None:
    network = Showo(replace(MODEL.config, list_choices=list_choices))
    network.load_state_dict(MODEL.network.state_dict())
    module, codes = TokenLogps(network), random_codes(3, 16)
    model = ShowoModel(network, MODEL.vq, MODEL.tokenizer)
    trees = model.reader.question_trees(Seen(codes), QUESTIONS)
    pad = MODEL.tokenizer.special.pad
    together = choice_logps(module, trees, QUESTIONS, pad, network.device)
    for tree, image in zip(trees, together, strict=True):
        logps = iter(torch.cat(image) if image else ())
        for segment in tree:
            if segment.labels is not None:
                instruction = tree[segment.parent]
                chain = [tree[0], instruction, segment._replace(parent=1)]
                batch = pack([chain], MODEL.tokenizer.special.pad)
                with torch.no_grad():
                    alone = sum_logps(module(batch), batch.branch_L, 1)[0]
                torch.testing.assert_close(next(logps), alone, rtol=1e-5, atol=1e-4)


def sums(model: ShowoModel, batch: PairBatch) -> list[torch.Tensor]:
    branches = [model.pair_logps(batch, modality) for modality in MODALITIES]
    return [
        value
        for b in branches
        for value in (b.chosen_logps_B, b.rejected_logps_B, b.chosen_tokens_B, b.rejected_tokens_B)
    ]


@pytest.mark.parametrize("num_masks", [1, 3])
def test_pairs_score_alike_alone_and_in_a_batch(num_masks: int) -> None:
    batch = pair_batch(num_masks)
    together = sums(MODEL, batch)
    for index in range(3):
        alone = sums(MODEL, batch.take(slice(index, index + 1)))
        for value_B, value_1 in zip(together, alone, strict=True):
            torch.testing.assert_close(value_B[index : index + 1], value_1, rtol=1e-5, atol=1e-4)


def test_gradients_of_a_batch_are_the_sum_over_its_pairs() -> None:
    batch, parameters = pair_batch(2), list(MODEL.network.parameters())

    def gradient(batch: PairBatch) -> tuple[torch.Tensor, ...]:
        logps = [MODEL.pair_logps(batch, modality) for modality in MODALITIES]
        margin_B = sum(m.chosen_logps_B - m.rejected_logps_B for m in logps)
        return torch.autograd.grad(margin_B.sum(), parameters)

    together = gradient(batch)
    parts = [gradient(batch.take(slice(index, index + 1))) for index in range(3)]
    for got, wanted in zip(together, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(got, torch.stack(wanted).sum(0), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("logits", [2**17, 2**26])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_log_probabilities_are_those_of_the_whole_vocabulary(
    logits: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With logits of some rows at a time, and all at once."""
    monkeypatch.setattr(heads, "MAX_LOGITS", logits)
    network = copy.deepcopy(MODEL.network)
    head, vocabulary = network.showo.lm_head, MODEL.config.vocab_size
    nn.init.normal_(head.bias)
    hidden_RD = torch.randn(2 * vocabulary, 64, generator=torch.Generator().manual_seed(0))
    hidden_RD.requires_grad_()
    targets_R = torch.arange(len(hidden_RD)) % vocabulary
    with autocast("cpu", precision):
        parts_R = network.token_logps(hidden_RD, targets_R)
        plain_R = -F.cross_entropy(head(hidden_RD).float(), targets_R, reduction="none")
    torch.testing.assert_close(parts_R, plain_R)
    leaves, weights_R = (hidden_RD, head.weight, head.bias), torch.linspace(-1, 1, len(targets_R))
    found, wanted = (torch.autograd.grad(x_R, leaves, weights_R) for x_R in (parts_R, plain_R))
    # Of each chunk a gradient of the head is rounded to bfloat16, which has 8 bits, and added up.
    close = 1e-5 if precision == "float32" else 2**-7
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() < close * other.norm()


def test_log_probabilities_give_no_gradient_to_a_frozen_head() -> None:
    network = copy.deepcopy(MODEL.network)
    network.showo.lm_head.requires_grad_(False)
    hidden_RD = torch.randn(3, 64).requires_grad_()
    network.token_logps(hidden_RD, torch.tensor([0, 1, 2])).sum().backward()
    assert hidden_RD.grad is not None
    assert network.showo.lm_head.weight.grad is None


@pytest.mark.parametrize("read", [[[3, 0], [5, 5], [1, 2]], [[], [], []]])
def test_states_at_chosen_positions_are_those_of_the_whole_row(read: list[list[int]]) -> None:
    network, generator = MODEL.network, torch.Generator().manual_seed(1)
    ids_BT = torch.randint(0, 50, (3, 6), generator=generator)
    attend_B1TT = (torch.rand(3, 1, 6, 6, generator=generator) < 0.5) | torch.eye(6).bool()
    position_BT = torch.arange(6)[None]
    read_BR = torch.tensor(read, dtype=torch.long)
    caches = [network.new_cache(3, 8) for _ in range(2)]
    with torch.no_grad():
        whole_BTD = network(ids_BT, attend_B1TT, position_BT, caches[0])
        some_BRD = network(ids_BT, attend_B1TT, position_BT, caches[1], read_BR)
    wanted_BRD = whole_BTD[torch.arange(3)[:, None], read_BR]
    torch.testing.assert_close(some_BRD, wanted_BRD, rtol=1e-5, atol=1e-5)
    for part in ("keys_LBHSE", "values_LBHSE"):
        whole, some = (getattr(cache, part)[:, :, :, :6] for cache in caches)
        torch.testing.assert_close(some, whole)


def test_mixed_precision_applies_to_a_wrapped_pair_module() -> None:
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    module = accelerator.prepare(PairModule(copy.deepcopy(MODEL.network)))
    pairs = MODEL.pack_pairs(pair_batch(), "image")
    got, wanted = (m(pairs).chosen_logps_B for m in (module, MODEL.pair_module))
    assert not torch.equal(got, wanted)
    torch.testing.assert_close(got, wanted, rtol=0.05, atol=1.0)


def test_gradients_pass_through_data_parallel(tmp_path: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        network = copy.deepcopy(MODEL.network)
        wrapped = nn.parallel.DistributedDataParallel(PairModule(network))
        wrapped(MODEL.pack_pairs(pair_batch(), "image")).chosen_logps_B.sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
    finally:
        torch.distributed.destroy_process_group()


def test_decoding_runs_in_half_precision(tmp_path: Path) -> None:
    MODEL.save_pretrained(tmp_path)
    loaded = ShowoModel.from_pretrained(tmp_path, dtype="bfloat16")
    assert loaded.generate(["a cat"], 2, IMAGE, [1]).shape == (1, 2, 16)
    assert len(loaded.caption(Seen(random_codes(2, 16)), [TextSampling(1.0, 3, 4)], [1, 2])) == 2
    assert len(loaded.answer(Seen(random_codes(3, 16)), QUESTIONS)) == 3


def gradients(model: ShowoModel, precision: str) -> dict[str, Tensor]:
    """Of both modalities; the backward pass runs where no autocast is on."""
    for modality in MODALITIES:
        with autocast("cpu", precision):
            logps = model.pair_logps(pair_batch(), modality)
        (logps.chosen_logps_B - logps.rejected_logps_B).sum().backward()
    named = model.network.named_parameters()
    return {name: p.grad for name, p in named if p.grad is not None}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_are_those_of_activations_that_are_kept(precision: str, frozen: bool) -> None:
    """Also where a block's input has none, as under adapters."""
    found = []
    for again in (False, True):
        network = copy.deepcopy(MODEL.network)
        network.showo.model.embed_tokens.requires_grad_(not frozen)
        model = ShowoModel(network, MODEL.vq, MODEL.tokenizer)
        if again:
            recompute(model.blocks)
        found.append(gradients(model, precision))
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) == sum(p.requires_grad for p in network.parameters())
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name
