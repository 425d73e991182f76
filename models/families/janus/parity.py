"""Parity of the Janus network, its image tokenizer, decoding and preferences.

Shapes: B records, T tokens, N codes, V vocabulary, C codebook entries.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from models.families.janus.config import HF_TYPE, OWN, PUBLISHED_TYPE, JanusConfig
from models.families.janus.convert import COUNTS, POOL, hf_sizes, to_hf, to_published
from models.families.janus.likelihood import PairModule, drawn_picture
from models.families.janus.model import VQ, JanusModel, Kept, load_network
from models.families.janus.prompts import JanusTokenizer
from models.families.janus.sampler import Rows, generate_images
from models.families.janus.vq import JanusVQ
from models.losses import dpo_loss
from models.nn.packing import Segment, Tree, pack, pack_trees
from models.nn.pairs import PackedPairs
from models.parity.case import (
    ABSOLUTE,
    EXACT,
    Case,
    absolute,
    arrays,
    exact,
    existing,
    relative,
    scaled,
)
from models.protocol import Autoregressive, Modality, TextSampling
from models.samplers.autoregressive import draw_codes, guided
from models.samplers.noise import GeneratorNoise, Noise, ReplayNoise
from models.samplers.prefixes import generate_text
from models.samplers.reading import leaf
from models.weights import Held

# Sums of some tens of log-probabilities, and norms over 280 tensors.
SUMS, NORMS = 2e-4, 1e-4


def cases(folder: Path, config: Mapping[str, Any], full_size: bool) -> Iterator[Case] | None:
    """Cases of a folder of published Janus numbers; None if it is of another family."""
    if config.get("model_type") != PUBLISHED_TYPE or "_kit" not in config:
        return None
    return janus_cases(folder)


class JanusFixture:
    """A Janus parity folder, loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        stored = json.loads(existing(folder / "config.json").read_text())
        kit = stored["_kit"]
        stored[OWN] = {"sizes": kit_sizes(kit), "settings": {"max_text_len": 64}}
        self.config = JanusConfig.from_sizes(
            {**hf_sizes(stored, folder / "config.json"), "model_type": HF_TYPE},
            folder / "config.json",
        )
        prepared = {name: kit["preprocessor"][name] for name in ("image_size", "min_size")}
        self.config = _with_preprocessing(self.config, prepared)
        self.runs = json.loads(existing(folder / "runs.json").read_text())
        self.prompting = json.loads(existing(folder / "prompting.json").read_text())
        self.inputs, self.expected = (arrays(folder / f"{n}.npz") for n in ("inputs", "expected"))
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
        shifted = {}
        for index, key in enumerate(sorted(self.weights)):
            weight = self.weights[key].float()
            wave = 0.05 * np.sin(0.37 * np.arange(weight.numel()) + index)
            shifted[key] = weight + torch.from_numpy(wave.astype(np.float32)).view_as(weight)
        return self.model(shifted)

    def tensor(self, name: str) -> Tensor:
        """An input array as a tensor."""
        return torch.from_numpy(self.inputs[name])


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
    yield _bytes("vq/decoded_uint8", drawn, wanted, expected["vq_decoded"].transpose(0, 2, 3, 1))
    codes_wide = fixture.tensor("vq_random_codes").long().reshape(-1, 24)
    yield absolute(
        "vq/decoded_wide", vq.decode(codes_wide, 4, 6), expected["vq_decoded_random_4x6"]
    )


def _bytes(name: str, got: Any, expected: Any, pixels: Any) -> Case:
    """Number of bytes that differ; at the edge of two, within the limit of `pixels`, both fit.

    Bytes are truncated, and processors differ in the last digit of the pixels.
    """
    low, high = (
        np.clip((pixels + error + 1) / 2 * 255, 0, 255).astype(np.uint8)
        for error in (-ABSOLUTE, ABSOLUTE)
    )
    return Case(name, float(((got != expected) & (got != low) & (got != high)).sum()), EXACT)


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
            how = TextSampling(
                run["temperature"], run.get("top_k") or None, tokens, run.get("top_p")
            )
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
            seen: list[Tensor] = []

            def logits(
                last_R: Tensor | None,
                rows: Rows = rows,
                seen: list[Tensor] = seen,
                how: Autoregressive = how,
            ) -> Tensor:
                found = rows.next_logits(last_R)
                seen.append(guided(found, how.guidance))
                return found

            draw_codes(logits, num_codes, how, GeneratorNoise(torch.Generator()))
            got = torch.stack(seen)
            wanted = expected[f"{name}_logits"].reshape(got.shape)
            yield absolute(f"images/{name}/logits", got, wanted)
    codes = torch.from_numpy(expected["gen_g5_T1_a_codes"]).long()
    side = fixture.config.image_size // fixture.config.downsample
    pixels = fixture.policy.vq.decode(codes, side, side)
    yield absolute("images/pixels", pixels, expected["gen_g5_T1_a_pixels"])


def _preference_cases(fixture: JanusFixture) -> Iterator[Case]:
    expected, run = fixture.expected, fixture.runs["dpo"]
    # Gradients of the vision tower are in the kit, so it reads pixels here.
    for model in (fixture.policy, fixture.reference):
        model.train_vision()
        model.network.zero_grad()
    trees = {modality: _pair_trees(fixture, modality) for modality in ("caption", "image")}
    logps = {}
    for modality in trees:
        for who, model in (("policy", fixture.policy), ("reference", fixture.reference)):
            pad = model.tokenizer.special.pad
            packed = PackedPairs(pack_trees(trees[modality], pad), 2, modality)  # type: ignore[arg-type]
            found = PairModule(model.network)(packed)
            logps[who, modality] = torch.stack([found.chosen_logps_B, found.rejected_logps_B], 1)
    for index, modality in enumerate(trees):
        for who in ("policy", "reference"):
            wanted = expected[f"dpo_{who}_logps"][:, index]
            yield relative(f"dpo/{who}_{modality}", logps[who, modality], wanted, SUMS)
    margins = {
        modality: (logps["policy", modality] - logps["reference", modality].detach())
        @ torch.tensor([1.0, -1.0])
        for modality in trees
    }
    scale = float(np.abs(expected["dpo_policy_logps"]).sum())
    both = torch.stack([*margins.values()], dim=1)
    yield scaled("dpo/margins", both, expected["dpo_margins"], scale)
    losses = {
        modality: dpo_loss(
            *logps["policy", modality].unbind(1),
            *logps["reference", modality].detach().unbind(1),
            beta=run["beta"],
        )
        for modality in trees
    }
    yield from _loss_cases(fixture, "dpo_mean", {m: loss.mean() for m, loss in losses.items()})
    sums = {
        modality: -torch.nn.functional.logsigmoid(run["beta"] * margin.sum())
        for modality, margin in margins.items()
    }
    yield from _loss_cases(fixture, "dpo_batchsum", sums)


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
        places = np.full(len(patches), tokenizer.special.image, dtype=np.int64)
        tree = [
            Segment(tokenizer.picture_head()),
            Segment(places, parent=0, features=patches),
            Segment(tokenizer.question(pair["q"]), parent=1),
        ]
        trees.append([*tree, *(leaf(tokenizer.answer(pair[side]), 2) for side in ("win", "lose"))])
    return trees


def _loss_cases(fixture: JanusFixture, stem: str, losses: dict[str, Tensor]) -> Iterator[Case]:
    expected, beta = fixture.expected, fixture.runs["dpo"]["beta"]
    # A loss moves by at most beta times what its margin does.
    scale = beta * float(np.abs(expected["dpo_policy_logps"]).sum())
    losses = {**losses, "total": torch.stack([*losses.values()]).sum()}
    for kind, loss in losses.items():
        yield scaled(f"{stem}/{kind}_loss", loss, expected[f"{stem}_{kind}_loss"], scale)
        wanted = expected.get(f"{stem}_{kind}_grad_norms")
        if wanted is None:
            continue
        gradients = _gradients(fixture, loss)
        norms = np.array([float(gradients[name].norm()) for name in sorted(gradients)])
        error = np.abs(norms - wanted) / np.maximum(wanted, 1e-6)
        yield Case(f"{stem}/{kind}_grad_norms", float(error.max()), NORMS)
        whole = sorted(name for name in expected if name.startswith("grad_"))
        for name in whole if (stem, kind) == ("dpo_mean", "total") else ():
            got, of_name = gradients[name.removeprefix("grad_")], expected[name]
            error = np.abs(got.numpy() - of_name.reshape(got.shape)).max() / np.abs(of_name).max()
            yield Case(f"{stem}/{name}", float(error), NORMS)


def _gradients(fixture: JanusFixture, loss: Tensor) -> dict[str, Tensor]:
    """Of a loss, by published names; zeros for what it does not reach."""
    policy = fixture.policy
    policy.network.zero_grad()
    loss.backward(retain_graph=True)
    found = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in policy.network.named_parameters()
    }
    found |= {VQ + name: torch.zeros_like(t) for name, t in policy.vq.state_dict().items()}
    unused = {name: torch.zeros(()) for name in fixture.weights if name.startswith(POOL)}
    return dict(to_published(found)) | unused
