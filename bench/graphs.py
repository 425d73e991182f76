"""Image sampling with the forward pass of an image block replayed as a CUDA graph."""

import torch
from torch import Tensor

from models.families.showo.network import Showo
from models.nn.kv_cache import KVCache


class GraphedNetwork:
    """Stands in for a network in `generate_images`, whose steps differ in the token ids alone."""

    def __init__(self, network: Showo) -> None:
        self.network = network
        self.config, self.device = network.config, network.device
        self.new_cache, self.logits = network.new_cache, network.logits
        self._cache: KVCache | None = None
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(
        self,
        ids_RT: Tensor,
        attend: Tensor,
        position_1T: Tensor,
        cache: KVCache,
        read: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [R,T,D]; the same memory in each step of an image but the first."""
        if cache is not self._cache or cache.length == 0:
            # Prompts, and what is done once; libraries set themselves up outside of the capture.
            self._cache, self._graph = cache, None
            hidden: Tensor = self.network(ids_RT, attend, position_1T, cache, read)
            return hidden
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            # What the graph reads has to outlive this call.
            self._ids_RT, self._kept = ids_RT.clone(), (attend, position_1T)
            with torch.cuda.graph(self._graph):
                self._hidden_RTD: Tensor = self.network(self._ids_RT, attend, position_1T, cache)
        self._ids_RT.copy_(ids_RT)
        self._graph.replay()
        return self._hidden_RTD
