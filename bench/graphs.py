"""Image sampling with the forward pass of an image block replayed as a CUDA graph."""

import torch
from torch import Tensor

from models.showo.network import KVCache, Showo


class GraphedNetwork:
    """Stands in for a network in `generate_images`, whose steps differ in the token ids alone."""

    def __init__(self, network: Showo) -> None:
        self.network = network
        self.config, self.device = network.config, network.device
        self.new_cache, self.logits = network.new_cache, network.logits
        self._cache: KVCache | None = None

    def __call__(
        self, ids_RT: Tensor, attend: Tensor, position_1T: Tensor, cache: KVCache
    ) -> Tensor:
        """Hidden states [R,T,D]; the same memory in each step of an image."""
        if cache.length == 0:  # prompts
            hidden_RTD: Tensor = self.network(ids_RT, attend, position_1T, cache)
            return hidden_RTD
        if cache is not self._cache:
            self._capture(ids_RT, attend, position_1T, cache)
        self._ids_RT.copy_(ids_RT)
        self._graph.replay()
        return self._hidden_RTD

    def _capture(self, ids_RT: Tensor, attend: Tensor, position_1T: Tensor, cache: KVCache) -> None:
        self._cache, self._ids_RT = cache, ids_RT.clone()
        self._graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries set themselves up outside of the capture
            self.network(self._ids_RT, attend, position_1T, cache)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(self._graph):
            self._hidden_RTD: Tensor = self.network(self._ids_RT, attend, position_1T, cache)
        # What the graph reads has to outlive this call.
        self._kept = attend, position_1T
