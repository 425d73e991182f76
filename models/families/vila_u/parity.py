"""Parity of the VILA-U network, its image tokenizer, decoding and preferences.

Shapes: B records, T tokens, N positions, D depths, V vocabulary, C codebook entries, W width.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from models.families.vila_u.config import PUBLISHED_TYPE
from models.families.vila_u.convert import FOLDERS, published_config, split
from models.families.vila_u.likelihood import drawn_picture
from models.families.vila_u.model import Kept, VilaUModel, cropped, load_network, padded
from models.families.vila_u.prompts import VilaUTokenizer
from models.families.vila_u.sampler import Rows, generate_images
from models.families.vila_u.sentencepiece import read_tokenizer
from models.families.vila_u.tower import Tower
from models.nn.chat import POSITIONS, captioned, read_picture
from models.nn.packing import IGNORE, PackedBatch, Segment, Tree, pack, pack_trees
from models.parity.case import (
    ABSOLUTE,
    Case,
    absolute,
    exact,
    existing,
    relative,
)
from models.parity.decoding import guided_logits, same_bytes, text_sampling
from models.parity.preferences import gradients_of, preference_cases
from models.parity.published import PublishedNumbers, shifted
from models.protocol import Autoregressive, Modality, TextSampling
from models.samplers.noise import GeneratorNoise, Noise, ReplayNoise
from models.samplers.prefixes import generate_text
from models.tokenizers.chat import Ids
from models.weights import Held

IMAGE = -200
"""What stands in published ids for all positions of a picture."""
GUIDED = 1e-4
"""Guidance triples what the two rows are off by."""
SUMS = 2e-6
NO_NORM = 0.1
"""Below, norms may be off by 1e-5: some are of gradients that are zero but for rounding."""
HALF = 0.05
"""Of pixels, which reach from -1.5 to 1.5 and are decoded in bfloat16 by the published code."""
TOP_K, TOP_P = 900, 0.96
"""Fixed in the published code."""


def cases(folder: Path, config: Mapping[str, Any], full_size: bool) -> Iterator[Case] | None:
    """Cases of a folder of published VILA-U numbers; None if it is of another family."""
    if config.get("model_type") != PUBLISHED_TYPE or "_kit" not in config:
        return None
    return vila_u_cases(folder)


class VilaUFixture(PublishedNumbers):
    """A VILA-U parity folder, loaded."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        kit = json.loads(existing(folder / "config.json").read_text())["_kit"]
        self.weights = {
            f"{part}.{name}": tensor
            for part in FOLDERS
            for name, tensor in load_file(existing(folder / part / "model.safetensors")).items()
        }
        shapes = {name: tensor.shape for name, tensor in self.weights.items()}
        self.own = kit_own(kit)
        self.config = published_config(folder, shapes, self.own)
        self.prompting = json.loads(existing(folder / "prompting.json").read_text())
        self.policy = self.model(self.weights)

    def model(self, published: Mapping[str, Tensor]) -> VilaUModel:
        """A model of weights by their published names, in float32."""
        of_network, of_tower, _ = split({n: t.float() for n, t in published.items()}, self.config)
        cpu = torch.device("cpu")
        return VilaUModel(
            load_network(self.config, Held(self.folder, of_network), cpu, "float32"),
            Tower.from_weights(self.config, Held(self.folder, of_tower), cpu),
            VilaUTokenizer.from_folder(self.folder / "tokenizer_json", self.config.settings),
            Kept(),
        )

    @cached_property
    def reference(self) -> VilaUModel:
        """The frozen model of the preference cases."""
        # Of what is trained: in the order of all names these are the first.
        return self.model(shifted(self.weights, self.policy.network.state_dict()))

    def codes(self, picture: int) -> Ids:
        """Published codes [N,D] of a picture."""
        return self.expected["codes"][picture].astype(np.int64)  # type: ignore[no-any-return]

    def batch(self, tree: Tree) -> PackedBatch:
        """A tree as a row."""
        return pack([tree], self.policy.tokenizer.special.pad)

    def states(self, tree: Tree) -> Tensor:
        """Final hidden states [T,W] of a tree."""
        network, batch = self.policy.network, self.batch(tree)
        embedded = network.embed(batch)
        return network.transform(embedded, batch.attend_B1TT, batch.position_ids_BT)[0]


def kit_own(kit: Mapping[str, Any]) -> dict[str, Any]:
    """What no published file states, as the parity files do."""
    vision = kit["siglip"]["vision_config"]
    return {
        "siglip": {name: vision[name] for name in ("num_attention_heads", "image_size")},
        "settings": {"max_text_len": 64},
    }


def vila_u_cases(folder: Path) -> Iterator[Case]:
    """Every case of a VILA-U folder."""
    fixture = VilaUFixture(folder)
    yield from _prompt_cases(fixture)
    with torch.inference_mode():
        yield from _picture_cases(fixture)
        yield from _pixel_cases(fixture)
        yield from _logit_cases(fixture)
        yield from _supervised_cases(fixture)
    yield from _text_cases(fixture)
    yield from _drawing_cases(fixture)
    yield from _preference_cases(fixture)


def _prompt_cases(fixture: VilaUFixture) -> Iterator[Case]:
    tokenizer = fixture.policy.tokenizer
    converted = VilaUTokenizer(
        read_tokenizer(fixture.folder / "llm", fixture.config.text.vocab_size),
        fixture.config.settings,
    )
    for kind, used in (("", tokenizer), ("_converted", converted)):
        for index, row in enumerate(fixture.prompting["und"]):
            ids = [*used.picture_head(), IMAGE, *used.question(row["question"])]
            yield exact(f"prompt/understanding_{index}{kind}", ids, row["ids"])
        for index, row in enumerate(fixture.prompting["gen"]):
            yield exact(f"prompt/generation_{index}{kind}", used.prompt(row["prompt"]), row["ids"])
        for index, pair in enumerate(fixture.runs["dpo"]["captions"]):
            for side in ("win", "lose"):
                ids = used.answer(pair[side]).tolist()
                yield exact(f"prompt/caption_{index}_{side}{kind}", ids, pair[f"{side}_tokens"])
                row = fixture.inputs[f"dpo_caption_{index}_{side}_ids"]
                whole = [*used.picture_head(), IMAGE, *used.question(pair["q"]), *ids]
                yield exact(f"prompt/row_{index}_{side}{kind}", whole, row)


def _picture_cases(fixture: VilaUFixture) -> Iterator[Case]:
    model, inputs, expected = fixture.policy, fixture.inputs, fixture.expected
    names = sorted(name for name in inputs if name.startswith("pixels_"))
    pictures = [Image.fromarray(inputs[name]) for name in names]
    resized = model.pixels([picture.convert("RGB") for picture in pictures])
    in_square = model.pixels([padded(picture) for picture in pictures])
    square = model.pixels([cropped(picture) for picture in pictures])
    for index in range(len(pictures)):
        wanted = {kind: expected[f"pixel_values{kind}_{index}"] for kind in ("", "_pad")}
        yield absolute(f"picture/resized_{index}", resized[index], wanted[""])
        yield absolute(f"picture/padded_{index}", in_square[index], wanted["_pad"])
        drawn = expected[f"pixel_values_generation_mode_{index}"]
        yield absolute(f"picture/cropped_{index}", square[index], drawn)
    features_BNZ = model.tower.features(resized)
    published = expected["encoder_features"].reshape(features_BNZ.shape)
    yield absolute("tower/features", features_BNZ, published)
    codes_BND = model.tower.quantise(features_BNZ)
    yield exact("tower/codes", codes_BND, expected["codes"])
    yield exact("tower/codes_seen", model.see(pictures).rows, expected["codes"])
    vectors = model.network.vectors(codes_BND)
    yield absolute("tower/vectors", vectors, expected["code_embeddings_with_depth"])
    summed = vectors.sum(dim=2)
    yield absolute("tower/sums", summed, expected["quantized"].reshape(summed.shape))
    inputs_BNW = model.network.picture_inputs(codes_BND)
    yield absolute("tower/projected", inputs_BNW, expected["image_features"])


def _pixel_cases(fixture: VilaUFixture) -> Iterator[Case]:
    expected, tower = fixture.expected, fixture.policy.tower
    codes_BND = torch.from_numpy(expected["codes"]).long()
    pixels = tower.decode(codes_BND)
    yield absolute("decoder/pixels", pixels, expected["decoded"])
    scaled_pixels = ((pixels + 1) * 127.5).clamp(0, 255)
    allowed = 127.5 * ABSOLUTE
    error = np.abs(scaled_pixels.numpy() - expected["decoded_0_255"]).max()
    yield Case("decoder/pixels_0_255", float(error), allowed)
    drawn = np.stack([np.asarray(one) for one in fixture.policy.decode(codes_BND.numpy())])
    wanted = expected["decoded_uint8"].transpose(0, 2, 3, 1)
    exact_pixels = expected["decoded"].transpose(0, 2, 3, 1)
    yield same_bytes("decoder/bytes", drawn, wanted, exact_pixels)
    height, width = fixture.runs["decoder_latent_shape"]
    resized = tower.decode(codes_BND, (height, width))
    yield absolute("decoder/resized_grid", resized, expected["decoded_latent_shape"])
    error = np.abs(pixels.numpy() - expected["decoded_bfloat16_as_published"]).max()
    yield Case("decoder/published_in_bfloat16", float(error), HALF)


def _asked(fixture: VilaUFixture, index: int) -> Tree:
    """A question about a picture, as published."""
    tokenizer = fixture.policy.tokenizer
    turn = tokenizer.question(fixture.prompting["und"][index]["question"])
    picture = read_picture(fixture.codes(index), tokenizer)
    return [*picture, Segment(turn, parent=POSITIONS)]


def _logit_cases(fixture: VilaUFixture) -> Iterator[Case]:
    network, expected = fixture.policy.network, fixture.expected
    tokenizer = fixture.policy.tokenizer
    for index in range(len(fixture.prompting["und"])):
        wanted = expected[f"und_logits_tail_{index}"]
        logits_TV = network.logits(fixture.states(_asked(fixture, index)))
        yield absolute(f"logits/understanding_{index}", logits_TV[-len(wanted) :], wanted)
    for index, codes_ND in enumerate(fixture.inputs["gen_row_codes"].astype(np.int64)):
        prompt = tokenizer.prompt(fixture.prompting["gen"][index]["prompt"])
        tree = [Segment(prompt), drawn_picture(codes_ND, tokenizer.special.pad)]
        states_NW = fixture.states(tree)[len(prompt) - 1 :]
        codes = torch.from_numpy(codes_ND)
        wanted = expected[f"gen_row_logits_{index}"]
        logits_NDC = network.code_logits(states_NW, codes)[: len(wanted)]
        yield absolute(f"logits/generation_{index}", logits_NDC, wanted)
        batch = fixture.batch(tree)
        logps_ND = fixture.policy.pair_module.token_logps(batch, codes=True)
        yield absolute(f"logps/generation_{index}", logps_ND, expected[f"gen_row_logps_{index}"])


def _supervised_cases(fixture: VilaUFixture) -> Iterator[Case]:
    """The published loss of supervised training, and logits behind padded rows."""
    inputs, expected = fixture.inputs, fixture.expected
    network = fixture.policy.network
    codes_BND = fixture.policy.tower.quantise(
        fixture.policy.tower.features(fixture.tensor("sft_pixel_values"))
    )
    of_text: list[list[Tensor]] = []
    of_codes: list[list[Tensor]] = []
    tails = expected["sft_logits_tail"]
    longest = max(_length(fixture, row) for row in range(len(codes_BND)))
    for row, codes_ND in enumerate(codes_BND):
        kept_T = inputs["sft_attention_mask"][row]
        ids_T = inputs["sft_input_ids"][row][kept_T].astype(np.int64)
        labels_T = inputs["sft_labels"][row][kept_T].astype(np.int64)
        [place] = np.flatnonzero(ids_T == IMAGE)
        picture = np.zeros(len(codes_ND), dtype=np.int64)
        tree = [
            Segment(ids_T[:place]),
            Segment(picture, parent=0, features=codes_ND.numpy()),
            Segment(ids_T[place + 1 :], parent=1),
        ]
        states_TW = fixture.states(tree)
        logits_TV = network.logits(states_TW)
        start = longest - tails.shape[1]
        if start < len(logits_TV):
            wanted = tails[row][: len(logits_TV) - start]
            yield absolute(f"logits/supervised_{row}", logits_TV[start:], wanted)
        expanded = np.concatenate(
            (labels_T[:place], np.full(len(codes_ND), IGNORE), labels_T[place + 1 :])
        )
        targets = torch.from_numpy(expanded[1:])
        asked = targets != IGNORE
        of_text.append([F.cross_entropy(logits_TV[:-1][asked], targets[asked], reduction="none")])
        is_drawn = labels_T[place] == IMAGE
        before = states_TW[place - 1 : place - 1 + len(codes_ND)]
        of_codes.append([-network.code_logps(before, codes_ND).flatten()] if is_drawn else [])
    drawn = [row for row, found in enumerate(of_codes) if found]
    read = [row for row in range(len(of_codes)) if row not in drawn]
    for name, rows in (("und", read), ("gen", drawn), ("", [*read, *drawn])):
        loss = sum(
            torch.cat(found).mean()
            for kind in (of_text, of_codes)
            if (found := [one for row in rows for one in kind[row]])
        )
        wanted_name = f"sft_loss_{name}" if name else "sft_loss"
        yield relative(f"supervised/{wanted_name}", loss, expected[wanted_name])
    yield relative("supervised/sft_loss_packed", loss, expected["sft_loss_packed"])


def _length(fixture: VilaUFixture, row: int) -> int:
    return int(fixture.inputs["sft_attention_mask"][row].sum()) - 1 + fixture.config.num_places


def _text_cases(fixture: VilaUFixture) -> Iterator[Case]:
    expected, run = fixture.expected, fixture.runs["text"]
    network, special = fixture.policy.network, fixture.policy.tokenizer.special
    tokens = run["max_new_tokens"]

    def said(index: int, sampling: TextSampling, stop: int, noise: Noise) -> list[list[int]]:
        tree = _asked(fixture, index)
        [ids] = generate_text(network, [tree], [sampling], stop, noise, special.pad)
        return ids

    unused = GeneratorNoise(torch.Generator())
    greedy = TextSampling(1.0, 1, tokens)
    for index in range(len(fixture.prompting["und"])):
        ids = said(index, greedy, special.eos, unused)
        yield exact(f"text/greedy_{index}", ids, expected[f"text_greedy_{index}"])
    ids = said(0, greedy, run["eos_used"], unused)
    yield exact("text/greedy_stopped", ids, expected["text_greedy_eos_0"])
    for name, how in fixture.runs.items():
        if f"text_noise_{name[5:]}" in fixture.inputs:
            sampling = text_sampling(how, tokens)
            noise = ReplayNoise(fixture.tensor(f"text_noise_{name[5:]}"))
            yield exact(f"text/{name[5:]}", said(0, sampling, special.eos, noise), expected[name])


@torch.inference_mode()
def _drawing_cases(fixture: VilaUFixture) -> Iterator[Case]:
    expected, tokenizer = fixture.expected, fixture.policy.tokenizer
    network = fixture.policy.network
    for name, run in fixture.runs.items():
        if not name.startswith("gen_"):
            continue
        prompts = [tokenizer.prompt(text) for text in run["prompts"]]
        for index, ids in enumerate(prompts):
            yield exact(f"images/{name}/prompt_{index}", ids, run["prompt_ids"][index])
        if run["cfg"] != 1:
            yield exact(f"images/{name}/unprompted", tokenizer.unprompted(), run["uncond_ids"])
        greedy = run["seed"] is None
        cuts = {"top_k": 1} if greedy else {"top_k": TOP_K, "top_p": TOP_P}
        how = Autoregressive(run["cfg"] - 1, 1.0, **cuts)
        noise: Noise = GeneratorNoise(torch.Generator())
        if not greedy:
            noise = ReplayNoise(fixture.tensor(f"{name}_noise").flatten(0, 1))
        codes = generate_images(network, prompts, 1, how, noise, tokenizer)
        yield exact(f"images/{name}/codes", codes, expected[f"{name}_codes"])
        if greedy:
            yield _guided_logits(fixture, name, prompts, how)
    for name in [name for name in fixture.runs if f"{name}_pixels" in expected]:
        codes = torch.from_numpy(expected[f"{name}_codes"]).long()
        pixels = fixture.policy.tower.decode(codes)
        yield absolute(f"images/{name}/pixels", pixels, expected[f"{name}_pixels"])


def _guided_logits(
    fixture: VilaUFixture, name: str, prompts: Sequence[Ids], how: Autoregressive
) -> Case:
    network, wanted = fixture.policy.network, fixture.expected[f"{name}_logits"]
    rows = Rows(network, prompts, 1, how.guidance > 0, fixture.policy.tokenizer)
    seen = guided_logits(rows.next_logits, wanted.shape[0] * wanted.shape[1], how)
    error = np.abs(seen.view(wanted.shape).numpy() - wanted).max()
    return Case(f"images/{name}/logits", float(error), GUIDED)


def _preference_cases(fixture: VilaUFixture) -> Iterator[Case]:
    modalities: tuple[Modality, ...] = ("caption", "image")
    trees = {modality: _pair_trees(fixture, modality) for modality in modalities}
    yield _by_depth(fixture, trees["image"])
    network, names = fixture.policy.network, fixture.runs["dpo"]["params"]
    trained = [name for name, _ in network.named_parameters()]
    yield exact("dpo/trained", sorted(trained) == sorted(names), True)

    def gradients(loss: Tensor) -> dict[str, Tensor]:
        found = gradients_of(network, loss)
        return {name: found[name] for name in names}

    yield from preference_cases(
        fixture.policy,
        fixture.reference,
        trees,
        fixture.expected,
        fixture.runs["dpo"]["beta"],
        gradients,
        sums=SUMS,
        least_norm=NO_NORM,
    )


def _by_depth(fixture: VilaUFixture, trees: Sequence[Tree]) -> Case:
    """Sums of the policy's log-probabilities of each depth."""
    wanted, policy = fixture.expected["dpo_policy_image_logps_by_depth"], fixture.policy
    with torch.inference_mode():
        batch = pack_trees(trees, policy.tokenizer.special.pad)
        logps_LD = policy.pair_module.token_logps(batch, codes=True)
        sums = logps_LD.new_zeros(batch.num_branches, logps_LD.shape[1])
        sums = sums.index_add(0, batch.branch_L, logps_LD)
    return relative("dpo/policy_image_by_depth", sums.view(wanted.shape), wanted, SUMS)


def _pair_trees(fixture: VilaUFixture, modality: Modality) -> list[Tree]:
    run, tokenizer, inputs = fixture.runs["dpo"], fixture.policy.tokenizer, fixture.inputs
    trees: list[Tree] = []
    if modality == "image":
        for prompt, codes in zip(run["prompts"], inputs["dpo_codes"].astype(np.int64), strict=True):
            leaves = (drawn_picture(one, tokenizer.special.pad) for one in codes)
            trees.append([Segment(tokenizer.prompt(prompt)), *leaves])
        return trees
    for pair in run["captions"]:
        picture = read_picture(fixture.codes(pair["pic"]), tokenizer)
        trees.append(captioned(picture, pair["q"], (pair["win"], pair["lose"]), tokenizer))
    return trees
