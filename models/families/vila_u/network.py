"""The VILA-U network: a Llama that reads and draws sums of residual codes.

Keys are the published ones behind the name of their folder. Reading and drawing have one input:
vectors of a position's codes, summed and projected. The codebooks belong to the tower
(`tower.py`) and are never trained; the network holds its tables.

Shapes: B rows, T query tokens, S key tokens (cached ones first), R chosen positions, W width of the
language model, V text vocabulary, D depths, K codebooks of C entries, Z width of an entry's vector.
"""

from torch import Tensor, nn
from transformers import LlamaModel

from models.families.vila_u.config import VilaUConfig
from models.families.vila_u.depth import DepthTransformer
from models.families.vila_u.tower import vectors
from models.nn.chat import ChatNetwork
from models.nn.packing import PackedBatch


class LanguageModel(nn.Module):
    """The folder `llm`."""

    def __init__(self, config: VilaUConfig) -> None:
        super().__init__()
        text = config.text
        self.model = LlamaModel(text)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)


class Projector(nn.Module):
    """The folder `mm_projector`: vectors of pictures to input of the language model."""

    def __init__(self, config: VilaUConfig) -> None:
        super().__init__()
        width = config.text.hidden_size
        first = nn.Linear(config.width, width)
        self.layers = nn.Sequential(first, nn.GELU(), nn.Linear(width, width))

    def forward(self, vectors_RZ: Tensor) -> Tensor:
        """[...,W]."""
        # Vectors are in float32, whatever the weights are.
        first: nn.Linear = self.layers[0]  # type: ignore[assignment]
        return self.layers(vectors_RZ.to(first.weight.dtype))  # type: ignore[no-any-return]


class Trained(nn.Module):
    """What is trained in the folder `vision_tower`."""

    def __init__(self, config: VilaUConfig) -> None:
        super().__init__()
        self.rqtransformer = DepthTransformer(config.tower.rqtransformer)


class VilaU(ChatNetwork):
    """All that is trained; the image tokenizer stands beside it."""

    tables_KCZ: Tensor
    """The tower's codebooks; no buffer, since nothing here is to be saved, sharded or sent."""

    def __init__(self, config: VilaUConfig) -> None:
        super().__init__()
        self.config = config
        self.llm = LanguageModel(config)
        self.mm_projector = Projector(config)
        self.vision_tower = Trained(config)

    @property
    def llama(self) -> LlamaModel:
        """The language model."""
        return self.llm.model

    @property
    def text_head(self) -> nn.Linear:
        """Its head."""
        return self.llm.lm_head

    @property
    def depths(self) -> DepthTransformer:
        """The transformer over a position's codes."""
        return self.vision_tower.rqtransformer

    def embed(self, batch: PackedBatch) -> Tensor:
        """Input [B,T,W] of packed rows: text, and positions of pictures with their codes."""
        hidden_BTW: Tensor = self.llm.model.embed_tokens(batch.input_ids_BT)
        if batch.features_FW is None or batch.feature_place_F is None:
            return hidden_BTW
        pictures_FW = self.picture_inputs(batch.features_FW).to(hidden_BTW.dtype)
        flat = hidden_BTW.flatten(0, 1).index_copy(0, batch.feature_place_F, pictures_FW)
        return flat.view_as(hidden_BTW)

    def vectors(self, codes_RD: Tensor) -> Tensor:
        """[...,D,Z] of codes, in float32."""
        return vectors(self.tables_KCZ, codes_RD)

    def picture_inputs(self, codes_RD: Tensor) -> Tensor:
        """Input [...,W] of positions of pictures, given all their codes."""
        return self.mm_projector(self.vectors(codes_RD).sum(dim=-2))  # type: ignore[no-any-return]

    def code_logits(self, hidden_RW: Tensor, codes_RD: Tensor) -> Tensor:
        """Logits [R,D,C] of codes, each given those before it."""
        return self.depths.logits(hidden_RW, self.vectors(codes_RD))

    def code_logps(self, hidden_RW: Tensor, codes_RD: Tensor) -> Tensor:
        """Log-probabilities [R,D] in nats of codes, in float32."""
        return self.depths.logps(hidden_RW, self.vectors(codes_RD), codes_RD)
