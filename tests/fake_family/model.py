"""Bytes as text, colours of a 4 x 4 grid as codes, patches of pixels as features.

Shapes: B records, K captions, M images, R rows, N codes, F features of W numbers, D width.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from models.nn.packing import (
    IGNORE,
    PackedBatch,
    Segment,
    count_tokens,
    pack,
    pack_trees,
    sum_logps,
)
from models.nn.token_logps import token_logps
from models.protocol import (
    Autoregressive,
    BranchLogps,
    Drawn,
    ImageSampling,
    Modality,
    PairBatch,
    Questions,
    RedrawBatch,
    SamplerName,
    Seen,
    TextReader,
    TextRole,
    TextSampling,
    TextUse,
)
from models.registry import Family
from models.samplers.autoregressive import draw_codes
from models.samplers.noise import RecordNoise

PAD, END, DRAW, CODES, COLORS, LONGEST = 0, 1, 2, 259, 8, 96  # bytes are 3 to 258
GRID, PATCH, SIZE = 4, 12, 32
N = GRID * GRID


def ids_of(text: str) -> np.ndarray[Any, Any]:
    """A text's bytes as ids."""
    return np.array([byte + 3 for byte in text.encode()[:LONGEST]], dtype=np.int64)


class Network(nn.Module):
    """One layer of attention over everything before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.embed = nn.Embedding(CODES + COLORS, width)
        self.places = nn.Embedding(512, width)
        self.features = nn.Linear(PATCH, width)
        self.layers = nn.ModuleList([nn.Linear(width, 3 * width)])
        self.head, self.draw = nn.Linear(width, CODES), nn.Linear(width, COLORS)

    def forward(self, batch: PackedBatch) -> Tensor:
        """Hidden states [L,D] that predict the labels."""
        hidden_BTD = self.embed(batch.input_ids_BT)
        if batch.features_FW is not None:
            read_FD = self.features(batch.features_FW)
            flat = hidden_BTD.flatten(0, 1).index_copy(0, batch.feature_place_F, read_FD)
            hidden_BTD = flat.view_as(hidden_BTD)
        hidden_BTD = hidden_BTD + self.places(batch.position_ids_BT)
        q, k, v = (part[:, None] for part in self.layers[0](hidden_BTD).chunk(3, dim=-1))
        attended = F.scaled_dot_product_attention(q, k, v, batch.attend_B1TT)[:, 0]
        states_BTD = (hidden_BTD + attended).tanh()
        rows_B1 = torch.arange(len(states_BTD))[:, None]
        return states_BTD[rows_B1, batch.read_BR].flatten(0, 1)[batch.source_L]


@dataclass(frozen=True)
class Packed:
    """One modality of pairs."""

    batch: PackedBatch
    modality: Modality
    sides: int = 2


class PairModule(nn.Module):
    """Log-probabilities of packed pairs."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, packed: Packed) -> BranchLogps:
        batch, network = packed.batch, self.network
        head = network.head if packed.modality == "caption" else network.draw
        logps_L = token_logps(network(batch), head, batch.targets_L)
        sums_BS = sum_logps(logps_L, batch.branch_L, batch.num_branches).view(-1, packed.sides)
        tokens_BS = count_tokens(batch.branch_L, batch.num_branches).view(-1, packed.sides)
        return BranchLogps(sums_BS[:, 0], sums_BS[:, -1], tokens_BS[:, 0], tokens_BS[:, -1])


class FakeModel:
    """A `models.protocol.UnifiedModel`."""

    sampler: SamplerName = "autoregressive"
    exact_images = True
    drawn_shape = (N,)

    def __init__(self, network: Network) -> None:
        self.network = network.eval()
        self.pair_module = PairModule(network)
        self.blocks = list(network.layers)

    @classmethod
    def load(cls, folder: Path, device: str, dtype: str | None = None) -> "FakeModel":
        network = Network(json.loads((folder / "config.json").read_text())["width"])
        network.load_state_dict(load_file(folder / "model.safetensors"))
        return cls(network)

    def save_pretrained(self, path: Path | str) -> None:
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"width": self.network.width}))
        save_file(self.network.state_dict(), folder / "model.safetensors")

    def see(self, images: Sequence[Image.Image]) -> Seen:
        pixels = [np.asarray(i.convert("RGB").resize((8, 8)), np.float32) / 255 for i in images]
        patches = np.stack(pixels).reshape(-1, GRID, 2, GRID, 2, 3).swapaxes(2, 3)
        return Seen(patches.reshape(-1, N, PATCH))

    def see_drawn(self, drawn: Drawn) -> Seen:
        return self.see(self.decode(drawn))

    def encode(self, images: Sequence[Image.Image]) -> Drawn:
        small = [i.convert("RGB").resize((GRID, GRID), Image.Resampling.BOX) for i in images]
        bits = np.stack([np.asarray(image) for image in small]).reshape(-1, N, 3) > 127
        return bits.astype(np.int64) @ np.array([4, 2, 1])

    def decode(self, drawn: Drawn) -> list[Image.Image]:
        bits = (drawn[..., None] >> np.array([2, 1, 0])) & 1
        grids = (bits * 255).astype(np.uint8).reshape(-1, GRID, GRID, 3)
        return [Image.fromarray(g).resize((SIZE, SIZE), Image.Resampling.NEAREST) for g in grids]

    def _root(self, features: np.ndarray[Any, Any]) -> Segment:
        return Segment(np.zeros(N, dtype=np.int64), full=True, features=features)

    @torch.inference_mode()
    def _write(
        self,
        roots: Sequence[Segment],
        starts: Sequence[str],
        samplings: Sequence[TextSampling],
        seeds: Sequence[int],
    ) -> list[list[str]]:
        """Texts behind a picture and a question, one for each sampling."""
        longest = max(sampling.max_new_tokens for sampling in samplings)
        noise = RecordNoise(seeds, len(samplings), longest, 1, torch.device("cpu"))
        rows = [(root, ids_of(text)) for root, text in zip(roots, starts, strict=True)]
        said: list[list[int]] = [[] for _ in rows for _ in samplings]
        for _ in range(longest):
            trees = []
            for index, ids in enumerate(said):
                root, asked = rows[index // len(samplings)]
                told = np.array([*asked, *ids], dtype=np.int64)
                labels = np.array([IGNORE] * len(told) + [0])
                trees.append([root, Segment(told, parent=0, labels=labels)])
            logits_RV = self.network.head(self.network(pack(trees, PAD)))
            for index, sampling in enumerate(samplings):
                logits = logits_RV[index :: len(samplings)] / sampling.temperature
                if sampling.top_k:
                    worst = logits.topk(sampling.top_k).values[:, -1:]
                    logits = logits.masked_fill(logits < worst, -torch.inf)
                logits_RV[index :: len(samplings)] = logits
            ids_R = noise.categorical(logits_RV.softmax(-1)[:, None])[:, 0].tolist()
            for ids, new in zip(said, ids_R, strict=True):
                ids.append(new)
        texts = []
        for index, ids in enumerate(said):
            ids = ids[: samplings[index % len(samplings)].max_new_tokens]
            ids = ids[: ids.index(END)] if END in ids else ids
            texts.append(bytes(i - 3 for i in ids if i > 2).decode(errors="replace"))
        return [texts[i : i + len(samplings)] for i in range(0, len(texts), len(samplings))]

    def caption(
        self, seen: Seen, samplings: Sequence[TextSampling], seeds: Sequence[int]
    ) -> list[list[str]]:
        roots = [self._root(features) for features in seen.rows]
        return self._write(roots, ["say "] * len(roots), samplings, seeds)

    def reply(self, seen: Seen, questions: Questions) -> list[list[str]]:
        asked = [(f, text) for f, qs in zip(seen.rows, questions, strict=True) for text, _ in qs]
        greedy = [TextSampling(1.0, 1, 8)]
        roots, texts = [self._root(f) for f, _ in asked], [text for _, text in asked]
        said = iter(self._write(roots, texts, greedy, [0] * len(asked)) if asked else [])
        return [[next(said)[0] for _ in of_image] for of_image in questions]

    @torch.inference_mode()
    def answer(self, seen: Seen, questions: Questions) -> list[list[Any]]:
        found = []
        for features, asked in zip(seen.rows, questions, strict=True):
            found.append([])
            for text, choices in asked:
                tree = [self._root(features), Segment(ids_of(text), parent=0)]
                for choice in choices:
                    ids = np.append(ids_of(choice), END)
                    tree.append(Segment(ids[:-1], parent=1, labels=ids))
                batch = pack([tree], PAD)
                logps_L = token_logps(self.network(batch), self.network.head, batch.targets_L)
                sums_G = sum_logps(logps_L, batch.branch_L, batch.num_branches)
                found[-1].append(sums_G.double().softmax(0).numpy())
        return found

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[str],
        num_samples: int,
        sampling: ImageSampling,
        seeds: Sequence[int],
    ) -> Drawn:
        assert isinstance(sampling, Autoregressive)
        noise = RecordNoise(seeds, num_samples, N, 1, torch.device("cpu"))
        starts = [np.append(ids_of(p), DRAW) for p in prompts for _ in range(num_samples)]
        if sampling.guidance > 0:
            starts += [np.array([DRAW])] * len(starts)
        codes = np.zeros((len(starts), 0), dtype=np.int64)

        def next_logits(last_R: Tensor | None) -> Tensor:
            nonlocal codes
            if last_R is not None:
                new = np.resize(last_R.numpy(), len(starts))[:, None]
                codes = np.concatenate((codes, new), axis=1)
            trees = []
            for start, row in zip(starts, codes, strict=True):
                ids = np.concatenate((start, CODES + row))
                labels = np.array([IGNORE] * len(ids) + [0])
                trees.append([Segment(ids, labels=labels)])
            logits_RC: Tensor = self.network.draw(self.network(pack(trees, PAD)))
            return logits_RC

        drawn = draw_codes(next_logits, N, sampling, noise)
        return drawn.view(len(prompts), num_samples, N).numpy()

    def text_uses(self, texts: Sequence[str], role: TextRole) -> list[TextUse]:
        return read_texts(Path())(texts, role)

    def pack_pairs(self, batch: PairBatch, modality: Modality) -> Packed:
        trees = []
        for index, prompt in enumerate(batch.prompts):
            if modality == "caption":
                root = self._root(batch.seen.rows[index])
                tree = [root, Segment(ids_of("say "), parent=0)]
                for text in (batch.captions_win[index], batch.captions_lose[index]):
                    ids = np.append(ids_of(text), END)
                    tree.append(Segment(ids[:-1], parent=1, labels=ids))
            else:
                prompt = "" if batch.unprompted[index] else prompt
                tree = [Segment(np.append(ids_of(prompt), DRAW))]
                for codes_N in (batch.drawn_win[index], batch.drawn_lose[index]):
                    tree.append(Segment(CODES + codes_N[:-1], parent=0, labels=codes_N))
            trees.append(tree)
        return Packed(pack_trees(trees, PAD), modality)

    def pack_redraws(self, batch: RedrawBatch) -> Packed:
        trees = [
            [
                self._root(patches_FW),
                Segment(np.array([DRAW]), parent=0),
                Segment(CODES + codes_N[:-1], parent=1, labels=codes_N),
            ]
            for patches_FW, codes_N in zip(batch.seen.rows, batch.drawn, strict=True)
        ]
        return Packed(pack_trees(trees, PAD), "image", sides=1)

    def pair_logps(self, batch: PairBatch, modality: Modality) -> BranchLogps:
        logps: BranchLogps = self.pair_module(self.pack_pairs(batch, modality))
        return logps


def read_texts(folder: Path) -> TextReader:
    """Every byte is a token."""

    def read(texts: Sequence[str], role: TextRole) -> list[TextUse]:
        return [TextUse(tuple(ids_of(t).tolist()), len(t.encode()), 0.0) for t in texts]

    return read


def make_model(seed: int = 0) -> FakeModel:
    """A random one."""
    torch.manual_seed(seed)
    return FakeModel(Network(24))


FAMILY = Family(
    title="Fake",
    load=FakeModel.load,
    read_texts=read_texts,
    files=("config.json", "model.safetensors"),
    sampler=FakeModel.sampler,
    exact_images=FakeModel.exact_images,
    redraws=True,
    recognises=lambda stored: set(stored) == {"width"},
    check=lambda folder: None,
    shared_weights=False,
)
