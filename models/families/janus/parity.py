"""Parity of the Janus network, its image tokenizer, decoding and preferences.

Shapes: B records, T tokens, N codes, V vocabulary, C codebook entries.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from models.families.janus.config import HF_TYPE, OWN, PUBLISHED_TYPE, JanusConfig
from models.families.janus.convert import COUNTS, POOL, hf_sizes, to_hf, to_published
from models.families.janus.likelihood import drawn_picture
from models.families.janus.model import VQ, JanusModel, Kept, load_network
from models.families.janus.prompts import JanusTokenizer
from models.families.janus.sampler import Rows, generate_images
from models.families.janus.vq import JanusVQ
from models.nn.chat import captioned, read_picture
from models.nn.packing import Segment, Tree, pack
from models.parity.case import (
    Case,
    absolute,
    exact,
    existing,
)
from models.parity.decoding import guided_logits, same_bytes, text_sampling
from models.parity.preferences import gradients_of, preference_cases
from models.parity.published import PublishedNumbers, shifted
from models.protocol import Autoregressive, Modality, TextSampling
from models.samplers.noise import GeneratorNoise, Noise, ReplayNoise
from models.samplers.prefixes import generate_text
from models.weights import Held

SUMS = 2e-4
"""Of some tens of log-probabilities."""


def cases(folder: Path, config: Mapping[str, Any], full_size: bool) -> Iterator[Case] | None:
    """Cases of a folder of published Janus numbers; None if it is of another family."""
    if config.get("model_type") != PUBLISHED_TYPE or "_kit" not in config:
        return None
    return janus_cases(folder)


class JanusFixture(PublishedNumbers):
    """A Janus parity folder, loaded."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        stored = json.loads(existing(folder / "config.json").read_text())
        kit = stored["_kit"]
        stored[OWN] = {"sizes": kit_sizes(kit), "settings": {"max_text_len": 64}}
        self.config = JanusConfig.from_sizes(
            {**hf_sizes(stored, folder / "config.json"), "model_type": HF_TYPE},
            folder / "config.json",
        )
        prepared = {name: kit["preprocessor"][name] for name in ("image_size", "min_size")}
        self.config = _with_preprocessing(self.config, prepared)
        self.prompting = json.loads(existing(folder / "prompting.json").read_text())
        self.weights = load_file(existing(folder / "model.safetensors"))
        self.policy = self.model(self.weights)

    def model(self, published: Mapping[str, Tensor]) -> JanusModel:
        """A model of weights by their published names, in float32."""
        used = {n: t.float() for n, t in published.items() if not n.startswith((POOL, COUNTS))}
        renamed: dict[str, Tensor] = {}
        for name, tensor in used.items():
            renamed |= to_hf(name, tensor)
        vq = {n.removeprefix(VQ): t for n, t in renamed.items() if n.startswith(VQ)}
        network = {n: t for n, t in renamed.items() if not n.startswith(VQ)}
        cpu = torch.device("cpu")
        return JanusModel(
            load_network(self.config, Held(self.folder, network), cpu, "float32"),
            JanusVQ.from_weights(self.config.vq, Held(self.folder, vq), cpu),
            JanusTokenizer.from_folder(self.folder / "tokenizer", self.config.settings),
            Kept(),
        )

    @cached_property
    def reference(self) -> JanusModel:
        """The frozen model of the preference cases."""
        return self.model(shifted(self.weights, self.weights))


def kit_sizes(kit: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes that no published config.json has, as the parity files state them."""
    return {
        "vision_config": {
            "hidden_size": kit["vision_width"],
            "num_hidden_layers": kit["vision_layers"],
            "num_attention_heads": kit["vision_heads"],
            "image_size": kit["image_size"],
            "patch_size": kit["vision_patch"],
            "mlp_ratio": kit["vision_mlp_ratio"],
        },
        "vq_config": {
            "base_channels": kit["vq_ch"],
            "channel_multiplier": kit["vq_ch_mult"],
            "num_res_blocks": kit["vq_num_res_blocks"],
            "latent_channels": kit["vq_z_channels"],
        },
    }


def _with_preprocessing(config: JanusConfig, values: Mapping[str, Any]) -> JanusConfig:
    return replace(config, preprocessing=replace(config.preprocessing, **values))


def janus_cases(folder: Path) -> Iterator[Case]:
    """Every case of a Janus folder."""
    fixture = JanusFixture(folder)
    yield from _prompt_cases(fixture)
    with torch.inference_mode():
        yield from _picture_cases(fixture)
        yield from _logit_cases(fixture)
    yield from _text_cases(fixture)
    yield from _drawing_cases(fixture)
    yield from _preference_cases(fixture)


def _prompt_cases(fixture: JanusFixture) -> Iterator[Case]:
    model, num_places = fixture.policy, fixture.config.num_features
    tokenizer = model.tokenizer
    for index, row in enumerate(fixture.prompting["und"]):
        ids = [*tokenizer.picture_head(), *[tokenizer.special.image] * num_places]
        ids += [*tokenizer.question(row["question"])]
        if "answer" in row:
            ids += [*tokenizer.answer(row["answer"])]
        yield exact(f"prompt/understanding_{index}", ids, row["ids"])
    for index, row in enumerate(fixture.prompting["gen"]):
        used = tokenizer
        if "roles" in row:
            user, assistant = row["roles"].split("/")
            settings = replace(fixture.config.settings, user=user, assistant=assistant)
            used = JanusTokenizer.from_folder(fixture.folder / "tokenizer", settings)
        yield exact(f"prompt/generation_{index}", used.prompt(row["prompt"]), row["ids"])


def _picture_cases(fixture: JanusFixture) -> Iterator[Case]:
    model, inputs, expected = fixture.policy, fixture.inputs, fixture.expected
    names = sorted(name for name in inputs if name.startswith("pixels_"))
    pictures = [Image.fromarray(inputs[name]) for name in names]
    patches_BFW = torch.from_numpy(model.patches(pictures))
    pixels_B3HW = model.network.pixels(patches_BFW.flatten(0, 1))
    for name, pixels_3HW in zip(names, pixels_B3HW, strict=True):
        wanted = expected[name.replace("pixels", "pixel_values")].reshape(pixels_3HW.shape)
        yield absolute(f"picture/{name}", pixels_3HW, wanted)
    features = torch.from_numpy(model.see(pictures).rows)
    yield absolute("vision/features", features, expected["vision_features"])
    aligned = model.network.aligned(features.flatten(0, 1))
    yield absolute(
        "vision/aligned",
        aligned.view(expected["aligned_features"].shape),
        expected["aligned_features"],
    )
    vq = model.vq
    image = fixture.tensor("vq_image")
    yield absolute("vq/z", vq.latents(image), expected["vq_z"])
    yield exact("vq/codes", vq.encode(image), expected["vq_codes"].reshape(len(image), -1))
    wide = fixture.tensor("vq_image_wide")
    yield exact("vq/codes_wide", vq.encode(wide), expected["vq_codes_wide"].reshape(len(wide), -1))
    codes = torch.from_numpy(expected["vq_codes"]).long().reshape(len(image), -1)
    side = fixture.config.image_size // fixture.config.downsample
    yield absolute("vq/decoded", vq.decode(codes, side, side), expected["vq_decoded"])
    drawn = np.stack([np.asarray(picture) for picture in model.decode(codes.numpy())])
    wanted = expected["vq_decoded_uint8"]
    yield same_bytes(
        "vq/decoded_uint8", drawn, wanted, expected["vq_decoded"].transpose(0, 2, 3, 1)
    )
    codes_wide = fixture.tensor("vq_random_codes").long().reshape(-1, 24)
    yield absolute(
        "vq/decoded_wide", vq.decode(codes_wide, 4, 6), expected["vq_decoded_random_4x6"]
    )


def _und_tree(fixture: JanusFixture, row: int) -> Tree:
    """An understanding row without its padding."""
    mask_T = fixture.inputs["und_attention_mask"][row] == 1
    ids_T = fixture.inputs["und_input_ids"][row][mask_T].astype(np.int64)
    seen_T = fixture.inputs["und_images_seq_mask"][row][mask_T].astype(bool)
    places = np.flatnonzero(seen_T)
    first, last = int(places[0]), int(places[-1]) + 1
    pixels = fixture.tensor("und_pixel_values")[row].reshape(1, 3, *[fixture.config.image_size] * 2)
    features = fixture.policy.network.features(pixels)[0].numpy()
    return [
        Segment(ids_T[:first]),
        Segment(ids_T[first:last], parent=0, features=features),
        Segment(ids_T[last:], parent=1),
    ]


def _logit_cases(fixture: JanusFixture) -> Iterator[Case]:
    network, expected = fixture.policy.network, fixture.expected
    for row in range(len(fixture.inputs["und_input_ids"])):
        batch = pack([_und_tree(fixture, row)], fixture.policy.tokenizer.special.pad)
        hidden_1TD = network.transform(
            network.embed(batch), batch.attend_B1TT, batch.position_ids_BT
        )
        wanted = expected["und_logits"][row][fixture.inputs["und_attention_mask"][row] == 1]
        yield absolute(f"logits/understanding_{row}", network.logits(hidden_1TD[0]), wanted)
    for row, codes_N in enumerate(fixture.inputs["gen_row_codes"].astype(np.int64)):
        prompt = fixture.inputs[f"gen_row_prompt_{row}"].astype(np.int64).ravel()
        leaf = drawn_picture(codes_N, fixture.config.vocab_size)
        batch = pack([[Segment(prompt), leaf]], fixture.policy.tokenizer.special.pad)
        hidden_1RD = network.transform(
            network.embed(batch), batch.attend_B1TT, batch.position_ids_BT, read_BR=batch.read_BR
        )
        logits_NC = network.code_logits(hidden_1RD[0])
        yield absolute(f"logits/generation_{row}", logits_NC, expected[f"gen_row_logits_{row}"])
    codes = torch.from_numpy(fixture.inputs["gen_row_codes"]).long()
    embedded = network.embed_codes(codes)
    wanted = expected["gen_embeds_of_codes"].reshape(embedded.shape)
    yield absolute("logits/embedded_codes", embedded, wanted)


def _text_cases(fixture: JanusFixture) -> Iterator[Case]:
    expected, runs = fixture.expected, fixture.runs
    with torch.inference_mode():
        trees = [_und_tree(fixture, row) for row in range(len(fixture.inputs["und_input_ids"]))]
    tokens = runs["text"]["max_new_tokens"]

    def case(
        name: str, sampling: TextSampling, stop: int, pad: int, noise: Noise, wanted: str
    ) -> Case:
        special = fixture.policy.tokenizer.special
        said = generate_text(fixture.policy.network, trees, [sampling], stop, noise, special.pad)
        rows = np.full((len(trees), tokens), pad)
        for row, [ids] in enumerate(said):
            rows[row, : len(ids)] = ids
        return exact(f"text/{name}", rows[:, : expected[wanted].shape[1]], expected[wanted])

    unused = GeneratorNoise(torch.Generator())
    greedy = TextSampling(1.0, 1, tokens)
    yield case("greedy", greedy, -1, 0, unused, "text_greedy")
    stop, pad = runs["text"]["eos_used"], runs["text_p0.8_T1.3_seed79"]["pad_after_eos"]
    yield case("greedy_stopped", greedy, stop, pad, unused, "text_greedy_eos")
    for name, run in runs.items():
        if name.startswith("text_") and f"text_noise_{name[5:]}" in fixture.inputs:
            how = text_sampling(run, tokens)
            noise = ReplayNoise(fixture.tensor(f"text_noise_{name[5:]}"))
            yield case(name[5:], how, run["eos"], run["pad_after_eos"], noise, name)


@torch.inference_mode()
def _drawing_cases(fixture: JanusFixture) -> Iterator[Case]:
    expected, tokenizer = fixture.expected, fixture.policy.tokenizer
    network, num_codes = fixture.policy.network, fixture.config.num_codes
    for name, run in fixture.runs.items():
        if not name.startswith("gen_"):
            continue
        prompt = np.array(run["prompt_ids"], dtype=np.int64)
        greedy = run["seed"] is None
        how = Autoregressive(
            run["cfg_weight"] - 1, run.get("temperature", 1.0), 1 if greedy else None
        )
        sources: dict[str, Noise] = {"generator": GeneratorNoise(torch.Generator())}
        if not greedy:
            generator = torch.Generator().manual_seed(run["seed"])
            sources = {
                "replay": ReplayNoise(fixture.tensor(f"{name}_noise")),
                "generator": GeneratorNoise(generator),
            }
        for source, noise in sources.items():
            codes = generate_images(network, [prompt], run["parallel_size"], how, noise, tokenizer)
            yield exact(f"images/{name}/{source}", codes, expected[f"{name}_codes"])
        if greedy:
            rows = Rows(network, [prompt], 1, how.guidance > 0, tokenizer)
            got = guided_logits(rows.next_logits, num_codes, how)
            wanted = expected[f"{name}_logits"].reshape(got.shape)
            yield absolute(f"images/{name}/logits", got, wanted)
    codes = torch.from_numpy(expected["gen_g5_T1_a_codes"]).long()
    side = fixture.config.image_size // fixture.config.downsample
    pixels = fixture.policy.vq.decode(codes, side, side)
    yield absolute("images/pixels", pixels, expected["gen_g5_T1_a_pixels"])


def _preference_cases(fixture: JanusFixture) -> Iterator[Case]:
    # Gradients of the vision tower are in the kit, so it reads pixels here.
    for model in (fixture.policy, fixture.reference):
        model.train_vision()
    modalities: tuple[Modality, ...] = ("caption", "image")
    yield from preference_cases(
        fixture.policy,
        fixture.reference,
        {modality: _pair_trees(fixture, modality) for modality in modalities},
        fixture.expected,
        fixture.runs["dpo"]["beta"],
        partial(_gradients, fixture),
        sums=SUMS,
        least_norm=1e-6,
    )


def _pair_trees(fixture: JanusFixture, modality: Modality) -> list[Tree]:
    run, tokenizer, inputs = fixture.runs["dpo"], fixture.policy.tokenizer, fixture.inputs
    trees: list[Tree] = []
    if modality == "image":
        for prompt, codes in zip(run["prompts"], inputs["dpo_codes"].astype(np.int64), strict=True):
            leaves = (drawn_picture(one, fixture.config.vocab_size) for one in codes)
            trees.append([Segment(tokenizer.prompt(prompt)), *leaves])
        return trees
    for pair in run["captions"]:
        picture = Image.fromarray(inputs[f"pixels_{pair['pic']}"])
        [patches] = fixture.policy.patches([picture])
        answers = (pair["win"], pair["lose"])
        trees.append(captioned(read_picture(patches, tokenizer), pair["q"], answers, tokenizer))
    return trees


def _gradients(fixture: JanusFixture, loss: Tensor) -> dict[str, Tensor]:
    """Of a loss, by published names in their order; zeros for what is never trained."""
    policy = fixture.policy
    found = gradients_of(policy.network, loss)
    found |= {VQ + name: torch.zeros_like(t) for name, t in policy.vq.state_dict().items()}
    unused = {name: torch.zeros(()) for name in fixture.weights if name.startswith(POOL)}
    return dict(sorted((dict(to_published(found)) | unused).items()))
