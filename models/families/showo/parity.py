"""Parity of the Show-o network, its masks, losses and decoding.

Shapes: B records, T tokens, N image tokens, V vocabulary.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.families.showo.config import ShowoConfig
from models.families.showo.likelihood import TokenLogps, masked_image, prompt_root
from models.families.showo.masks import mask_pair, mmu_attention, t2i_attention
from models.families.showo.network import Showo
from models.families.showo.parity_vq import full_size_cases, magvitv2_cases
from models.families.showo.prompts import SpecialIds
from models.families.showo.sampler import generate_images
from models.losses import dpo_loss
from models.nn.packing import IGNORE, Segment, Tree, pack_trees, sum_logps
from models.parity.case import Case, absolute, exact, existing, relative, scaled
from models.parity.published import PublishedNumbers, shifted
from models.protocol import MaskPredict, TextSampling
from models.samplers.mask_predict import UNKNOWN, mask_lengths, remask
from models.samplers.noise import GeneratorNoise, Noise, ReplayNoise
from models.samplers.prefixes import generate_text, lengths, prefill

AS_CALLED = "as_called"  # with the published script's wrong arguments


class ShowoFixture(PublishedNumbers):
    """A Show-o parity folder, loaded."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.config = ShowoConfig.from_json(existing(folder / "config.json"))
        self.special = SpecialIds.from_config(self.config)
        self.weights = load_file(existing(folder / "model.safetensors"))
        self.policy = self._network(self.weights)
        self.reference = self._network(shifted(self.weights, self.weights))

    def _network(self, weights: dict[str, Tensor]) -> Showo:
        network = Showo(self.config)
        network.load_state_dict(weights)
        return network

    @property
    def image_start(self) -> int:
        """Column of the first image token in a generation row."""
        return self.config.max_text_len + 2

    def t2i_tree(self, ids_T: npt.NDArray[Any], labels_T: npt.NDArray[Any]) -> Tree:
        """A padded generation row without its padding."""
        image = slice(self.image_start, self.image_start + self.config.num_vq_tokens)
        block = masked_image(ids_T[image], labels_T[image], self.special, borders=True)
        return [prompt_root(self.prompt(ids_T), self.config.max_text_len), block]

    def prompt(self, ids_T: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """The prompt of a padded generation row."""
        padded_T = ids_T[: self.image_start - 1]
        prompt_T: npt.NDArray[np.int64] = padded_T[padded_T != self.special.pad].astype(np.int64)
        return prompt_T

    def mmu_tree(self, ids_T: npt.NDArray[Any], labels_T: npt.NDArray[Any] | None = None) -> Tree:
        """A padded understanding row without its padding."""
        prefix = self.config.num_vq_tokens + 3
        end = int((ids_T != self.special.pad).sum())
        labels = None if labels_T is None else labels_T[prefix:end].astype(np.int64)
        ids = ids_T.astype(np.int64)
        return [Segment(ids[:prefix], full=True), Segment(ids[prefix:end], 0, labels=labels)]


def cases(folder: Path, config: Mapping[str, Any], full_size: bool) -> Iterator[Case] | None:
    """Cases of a folder with a network or an image tokenizer; None if it is of another family."""
    if "encoder" in config:
        tokenizer = magvitv2_cases(folder)
        return chain(tokenizer, full_size_cases(folder)) if full_size else tokenizer
    return showo_cases(folder) if "llm_vocab_size" in config else None


def showo_cases(folder: Path) -> Iterator[Case]:
    """Every case of a Show-o folder."""
    fixture = ShowoFixture(folder)
    yield from _mask_cases(fixture)
    with torch.inference_mode():
        yield from _logit_cases(fixture)
    yield from _preference_cases(fixture)
    for name, run in fixture.runs.items():
        if "guidance_scale" in run:
            yield from _image_cases(fixture, name, run)
    yield from _text_cases(fixture)


def _mask_cases(fixture: ShowoFixture) -> Iterator[Case]:
    t2i_BT, mmu_BT = fixture.tensor("t2i_input_ids"), fixture.tensor("mmu_input_ids")
    inputs, special = fixture.inputs, fixture.special
    yield exact("mask/t2i", t2i_attention(t2i_BT, special), inputs["t2i_attend"])
    unpadded = t2i_attention(t2i_BT, special, skip_pads=False)
    yield exact("mask/t2i_keep_pad", unpadded, inputs["t2i_attend_keep_pad"])
    yield exact("mask/mmu", mmu_attention(mmu_BT, special), inputs["mmu_attend"])
    for stem in sorted(n.removesuffix("rand_t") for n in inputs if n.endswith("rand_t")):
        win, lose, time, order = (inputs[stem + n] for n in ("win", "lose", "rand_t", "rand_perm"))
        got = mask_pair(win, lose, time, order, fixture.config.mask_token_id)
        wanted = {n: fixture.expected[stem + n] for n in ("mask", "input_win", "input_lose")}
        labels = {n: fixture.expected[stem + n] for n in ("labels_win", "labels_lose")}
        yield exact(f"{stem}mask", got.mask_BN, wanted["mask"])
        yield exact(f"{stem}input_win", got.win_BN, wanted["input_win"])
        yield exact(f"{stem}input_lose", got.lose_BN, wanted["input_lose"])
        yield exact(f"{stem}labels_win", got.win_labels_BN, labels["labels_win"])
        yield exact(f"{stem}labels_lose", got.lose_labels_BN, labels["labels_lose"])
        yield relative(f"{stem}prob", got.mask_prob_B, fixture.expected[stem + "mask_prob"])


def _logit_cases(fixture: ShowoFixture) -> Iterator[Case]:
    network, expected = fixture.policy, fixture.expected
    for task in ("t2i", "mmu"):
        logits = _logits(
            network, fixture.tensor(f"{task}_input_ids"), fixture.tensor(f"{task}_attend")
        )
        yield absolute(f"logits/{task}", logits, expected[f"{task}_logits"])
    logits = _logits(network, fixture.tensor("mmu_input_ids"), None)
    yield absolute("logits/causal", logits, expected["causal_default_logits"])
    trees = [fixture.mmu_tree(ids_T) for ids_T in fixture.inputs["mmu_input_ids"]]
    _, hidden_BTD = prefill(network, trees, fixture.special.pad)
    packed = network.logits(hidden_BTD)
    for row, end in enumerate(lengths(trees).tolist()):
        wanted = expected["mmu_logits"][row, :end]
        yield absolute(f"logits/mmu_packed_{row}", packed[row, :end], wanted)
    yield _cached_tail(fixture)


def _logits(network: Showo, ids_BT: Tensor, attend_B1TT: Tensor | None) -> Tensor:
    return network.logits(network(ids_BT, attend_B1TT, torch.arange(ids_BT.shape[1])[None]))


def _cached_tail(fixture: ShowoFixture) -> Case:
    """Logits of a continuation fed token by token into a cache of its prefix."""
    network = fixture.policy
    ids_T = fixture.inputs["mmugen_full_ids"][0]
    wanted = fixture.expected["mmugen_full_logits_tail"]
    start = len(ids_T) - len(wanted) + 1
    prefix_cache, hidden_1TD = prefill(network, [fixture.mmu_tree(ids_T[:start])], -1)
    cache = prefix_cache.take_rows(torch.zeros(1, dtype=torch.long), len(wanted))
    got = [network.logits(hidden_1TD[0, -1])]
    for position in range(start, len(ids_T)):
        token_11 = torch.tensor([[int(ids_T[position])]])
        hidden_11D = network(token_11, None, torch.tensor([[position]]), cache)
        cache.advance(1)
        got.append(network.logits(hidden_11D[0, 0]))
    return absolute("logits/mmu_cached", torch.stack(got), wanted)


def _preference_cases(fixture: ShowoFixture) -> Iterator[Case]:
    for stem in ("dpo_b1_", "dpo_b2_"):
        for path in ("padded", "packed", AS_CALLED):
            yield from _preference_case(fixture, stem, path)
    batch = _branch_logps(fixture, fixture.policy, "dpo_b2_win_", "padded")
    labels = fixture.inputs["dpo_b2_win_labels"] != IGNORE
    num_t2i = labels[:2, fixture.image_start - 1 :].sum()
    num_mmu = labels[2:].sum()
    means = torch.stack((-batch[0].sum() / num_t2i, -batch[1].sum() / num_mmu))
    yield relative("cross_entropy/b2_win", means, fixture.expected["ce_b2_win_t2i_mmu"])


def _preference_case(fixture: ShowoFixture, stem: str, path: str) -> Iterator[Case]:
    expected, beta = fixture.expected, fixture.runs["dpo"]["beta"]
    kind = path if path == AS_CALLED else "intended"
    fixture.policy.zero_grad()
    logps = [
        _branch_logps(fixture, network, f"{stem}{side}_", path)
        for network in (fixture.policy, fixture.reference)
        for side in ("win", "lose")
    ]
    losses, weighted_logps = [], 0.0
    for task, name in enumerate(("t2i", "mmu")):
        # The published loss takes one sigmoid of the sum over the batch.
        win, lose, ref_win, ref_lose = sums = [both[task].sum() for both in logps]
        losses.append(dpo_loss(win, lose, ref_win.detach(), ref_lose.detach(), beta=beta))
        wanted = expected[f"{stem}{kind}_{name}_logp"]
        yield relative(f"{stem}{path}/{name}_logp", torch.stack(sums), wanted)
        # A loss moves by at most beta times what its margin does, and may itself be close to 0. So
        # its error is measured against beta times the log-probabilities that the margin is made of.
        scale = beta * float(np.abs(wanted).sum())
        weighted_logps += scale
        wanted = expected[f"{stem}{kind}_{name}_loss"]
        yield scaled(f"{stem}{path}/{name}_loss", losses[-1], wanted, scale)
    for side, both in zip(("win", "lose"), logps, strict=False):
        by_record = expected.get(f"{stem}persample_{side}_policy")
        if by_record is not None and kind == "intended":
            sums_B2 = torch.stack(both, dim=1)
            yield relative(f"{stem}{path}/{side}_by_record", sums_B2, by_record)
    total = losses[0] + losses[1]
    wanted = expected[f"{stem}{kind}_total_loss"]
    yield scaled(f"{stem}{path}/total_loss", total, wanted, weighted_logps)
    total.backward()
    named = dict(fixture.policy.named_parameters())
    norms = torch.stack([_grad_norm(named[key]) for key in sorted(named)])
    yield relative(f"{stem}{path}/grad_norms", norms, expected[f"{stem}{kind}_grad_norms"])


def _grad_norm(parameter: nn.Parameter) -> Tensor:
    return torch.zeros(()) if parameter.grad is None else parameter.grad.norm()


def _branch_logps(
    fixture: ShowoFixture, network: Showo, stem: str, path: str
) -> tuple[Tensor, Tensor]:
    """Sums of log-probabilities [B] of the generation rows, and of the understanding rows.

    As called by the published training script, all rows count as understanding rows.
    """
    ids_BT, labels_BT = fixture.inputs[stem + "input_ids"], fixture.inputs[stem + "labels"]
    half = len(ids_BT) // 2
    if path == "packed":
        rows = list(zip(ids_BT, labels_BT, strict=True))
        trees = [fixture.t2i_tree(ids_T, labels_T) for ids_T, labels_T in rows[:half]]
        trees += [fixture.mmu_tree(ids_T, labels_T) for ids_T, labels_T in rows[half:]]
        batch = pack_trees(trees, fixture.special.pad)
        sums_G = sum_logps(TokenLogps(network)(batch), batch.branch_L, batch.num_branches)
        return sums_G[:half], sums_G[half:]
    start = fixture.image_start - 1
    logits_BTV = _logits(network, torch.from_numpy(ids_BT), fixture.tensor(stem + "attend"))
    logps_BTV = logits_BTV.log_softmax(dim=-1)
    labels = torch.from_numpy(labels_BT).long()
    t2i_B = _label_sums(logps_BTV[:half, start:], labels[:half, start:])
    first = 0 if path == AS_CALLED else half
    return t2i_B, _label_sums(logps_BTV[first:, :-1], labels[first:, 1:])


def _label_sums(logps_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    kept_BT = labels_BT != IGNORE
    taken_BT = logps_BTV.gather(-1, labels_BT.clamp(min=0)[:, :, None])[:, :, 0]
    return (taken_BT * kept_BT).sum(dim=1)


def _image_cases(fixture: ShowoFixture, name: str, run: dict[str, Any]) -> Iterator[Case]:
    config, expected = fixture.config, fixture.expected
    ids_BT = fixture.inputs[f"gen_{name}_input_ids"]
    start = fixture.image_start
    image_BN = torch.from_numpy(ids_BT[:, start : start + config.num_vq_tokens]).long()
    masked_BN = image_BN == config.mask_token_id
    given_BN = torch.where(masked_BN, UNKNOWN, image_BN - config.image_offset)
    sampling = MaskPredict(run["timesteps"], run["guidance_scale"], run["temperature"])
    prompts = [fixture.prompt(ids_T) for ids_T in ids_BT]
    exponential, uniform = (
        fixture.tensor("gen_noise_exponential"),
        fixture.tensor("gen_noise_uniform"),
    )
    sources: dict[str, Noise] = {
        "replay": ReplayNoise(exponential, uniform),
        "generator": GeneratorNoise(torch.Generator().manual_seed(run["seed"])),
    }
    for source, noise in sources.items():
        codes = generate_images(
            fixture.policy, prompts, 1, sampling, noise, fixture.special, given_BN
        )
        yield exact(f"images/{name}/{source}", codes, expected[f"gen_{name}_ids"])
    temperature, unknown_BN = sampling.temperature, masked_BN
    lengths, masks = [], []
    for step in range(sampling.steps):
        ratio = (step + 1) / sampling.steps
        temperature *= 1 - ratio
        lengths.append(mask_lengths(ratio, unknown_BN))
        probs_BN = torch.from_numpy(expected[f"gen_{name}_selected_probs"][step])
        unknown_BN = remask(probs_BN, uniform[step], temperature, lengths[-1])
        masks.append(unknown_BN)
    wanted = expected[f"gen_{name}_mask_len"]
    yield exact(f"images/{name}/mask_len", torch.stack(lengths), wanted)
    yield exact(f"images/{name}/masking", torch.stack(masks), expected[f"gen_{name}_masking"])


def _text_cases(fixture: ShowoFixture) -> Iterator[Case]:
    run, expected = fixture.runs["mmugen"], fixture.expected
    tree = fixture.mmu_tree(fixture.inputs["mmugen_prefix"][0])
    tokens, never = run["max_new_tokens"], -1

    def case(name: str, sampling: TextSampling, stop: int, noise: Noise, wanted: str) -> Case:
        ids = generate_text(fixture.policy, [tree], [sampling], stop, noise, fixture.special.pad)
        return exact(f"text/{name}", ids[0][0], expected[wanted])

    greedy, unused = TextSampling(1.0, 1, tokens), GeneratorNoise(torch.Generator())
    yield case("greedy", greedy, never, unused, "mmugen_greedy")
    yield case("greedy_eot", greedy, run["eot_used"], unused, "mmugen_greedy_eot")
    # Sampled texts carry their settings in their names: mmugen_k<top-k>_T<temperature>_seed<seed>.
    for wanted in sorted(expected):
        if found := re.fullmatch(r"mmugen_k(\d+)_T([\d.]+)_seed(\d+)", wanted):
            top_k, temperature, seed = int(found[1]), float(found[2]), int(found[3])
            warm = TextSampling(temperature, top_k, tokens)
            replay = ReplayNoise(fixture.tensor(f"mmugen_noise_exponential_seed{seed}"))
            seeded = GeneratorNoise(torch.Generator().manual_seed(seed))
            yield case(f"k{top_k}/replay", warm, never, replay, wanted)
            yield case(f"k{top_k}/generator", warm, never, seeded, wanted)
