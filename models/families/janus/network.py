"""The Janus network: one Llama that reads features of a vision tower and draws codes of its own.

Modules and state-dict keys are transformers'. The loop over the layers is models/nn/llama.py: rows
are packed trees, and prefixes are kept in a cache that rows share.

Shapes: B rows, T query tokens, S key tokens (cached ones first), R chosen positions, D width,
V text vocabulary, C codebook entries, I pictures, F positions of a picture, W width of a feature,
P patch side.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaModel
from transformers.models.janus.modeling_janus import (
    JanusVisionAlignerMLP,
    JanusVisionModel,
    JanusVQVAEAlignerMLP,
    JanusVQVAEHead,
)

from models.families.janus.config import JanusConfig
from models.nn.chat import ChatNetwork
from models.nn.packing import PackedBatch
from models.nn.token_logps import token_logps


class Parts(nn.Module):
    """The parts of a Janus network under the names that transformers gives them."""

    def __init__(self, text: Any, vision: Any, vq: Any) -> None:
        super().__init__()
        self.vision_model = JanusVisionModel(vision).requires_grad_(False)
        self.aligner = JanusVisionAlignerMLP(vision)
        self.generation_embeddings = nn.Embedding(vq.num_embeddings, vq.embed_dim)
        self.generation_aligner = JanusVQVAEAlignerMLP(vq)
        self.generation_head = JanusVQVAEHead(vq)
        self.language_model = LlamaModel(text)
        # A padding index would take the gradient from the row that guidance reads.
        self.language_model.embed_tokens.padding_idx = None


class Janus(ChatNetwork):
    """All that is trained, and the vision tower; the image tokenizer stands beside it."""

    def __init__(self, config: JanusConfig) -> None:
        super().__init__()
        self.config = config
        text, vision, vq = (
            config.text,
            config.vision,
            config.vq,
        )
        self.model = Parts(text, vision, vq)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)

    @property
    def llama(self) -> LlamaModel:
        """The language model."""
        return self.model.language_model

    @property
    def text_head(self) -> nn.Linear:
        """Its head."""
        return self.lm_head

    def place_constants(self, device: torch.device) -> None:
        """Make what is in no file, for a network that was made on meta."""
        super().place_constants(device)
        vision = self.model.vision_model.embeddings
        positions_1F = torch.arange(vision.num_positions, device=device)[None]
        vision.position_ids = nn.Buffer(positions_1F, persistent=False)

    def embed(self, batch: PackedBatch) -> Tensor:
        """Input [B,T,D] of packed rows: text, codes (ids from V on) and features of pictures."""
        vocab_size, ids_BT = self.config.vocab_size, batch.input_ids_BT
        text_BT = ids_BT.clamp(max=vocab_size - 1)
        hidden_BTD: Tensor = self.model.language_model.embed_tokens(text_BT)
        if batch.features_FW is not None and batch.feature_place_F is not None:
            read_FD = self.aligned(batch.features_FW).to(hidden_BTD.dtype)
            flat = hidden_BTD.flatten(0, 1).index_copy(0, batch.feature_place_F, read_FD)
            hidden_BTD = flat.view_as(hidden_BTD)
            # Rows with pictures to read mostly hold no codes; others are mostly codes.
            if not batch.mixed:
                return hidden_BTD
        codes_BTD = self.embed_codes((ids_BT - vocab_size).clamp(min=0))
        return torch.where((ids_BT >= vocab_size)[:, :, None], codes_BTD, hidden_BTD)

    def embed_codes(self, codes: Tensor) -> Tensor:
        """Input [...,D] of drawn codes [...]."""
        embedded = self.model.generation_embeddings(codes)
        return self.model.generation_aligner(embedded)  # type: ignore[no-any-return]

    def features(self, pixels_I3HW: Tensor) -> Tensor:
        """Features [I,F,W] of the vision tower."""
        return self.model.vision_model(pixels_I3HW).last_hidden_state  # type: ignore[no-any-return]

    def aligned(self, read_FW: Tensor) -> Tensor:
        """Input [F,D] of pictures: features of the tower, or bytes of patches for it to read."""
        if read_FW.dtype == torch.uint8:
            read_FW = self.features(self.pixels(read_FW)).flatten(0, 1)
        return self.model.aligner(read_FW.to(self.lm_head.weight.dtype))  # type: ignore[no-any-return]

    def pixels(self, patches_FW: Tensor) -> Tensor:
        """Normalised pixels [I,3,H,W] of the bytes of patches, rows of W = 3*P*P numbers."""
        vision, prepared = self.config.vision, self.config.preprocessing
        side, patch = vision.image_size // vision.patch_size, vision.patch_size
        grid = patches_FW.view(-1, side, side, 3, patch, patch)
        bytes_I3HW = grid.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, side * patch, side * patch)
        mean, std = (
            torch.tensor(values, device=patches_FW.device)[:, None, None]
            for values in (prepared.image_mean, prepared.image_std)
        )
        return (bytes_I3HW.float() / 255 - mean) / std

    def code_logits(self, hidden_RD: Tensor) -> Tensor:
        """Logits [...,C] of the next code."""
        return self.model.generation_head(hidden_RD)  # type: ignore[no-any-return]

    def code_logps(self, hidden_RD: Tensor, codes: Tensor) -> Tensor:
        """Log-probabilities [R] in nats of codes [R], in float32."""
        head = self.model.generation_head
        hidden_RD = head.activation_fn(head.proj_out(hidden_RD))
        return token_logps(hidden_RD, head.vision_head, codes)
