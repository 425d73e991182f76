"""lmms-eval's tasks on our checkpoints: its model `hermesflow`, which it finds by an entry point.

It runs where lmms-eval and this project are installed beside each other; nothing else imports this
module. Device, precision and decoding are those of the config, as in all other evaluations.
"""

from __future__ import annotations

import logging
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from core.config import load_config
from core.errors import UserError
from evals.checkpoints import open_checkpoint
from evals.systems.base import Question
from evals.systems.checkpoint import CheckpointSystem
from services.replies import NoAnswer

logger = logging.getLogger(__name__)


class HermesFlow(lmms):  # type: ignore[misc]
    """A checkpoint that replies about the first picture of each document."""

    is_simple = True

    def __init__(
        self,
        checkpoint: str,
        config: str = "pipeline.yaml",
        batch_size: object = None,
        max_batch_size: object = None,
        device: object = None,
    ) -> None:
        """`checkpoint` and `config` as in `hermesflow benchmark`.

        lmms-eval always gives the others; here the config decides about devices and batches.
        """
        super().__init__()
        self._system = CheckpointSystem.of(load_config(config), open_checkpoint(checkpoint))

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Greedy replies; UserError for a document without a picture."""
        replies = []
        several = 0
        for request in requests:
            context, _, visuals, doc_id, task, split = request.args
            pictures = [one for one in visuals(self.task_dict[task][split][doc_id]) if one]
            if not pictures:
                raise UserError(f"task {task}: document {doc_id} has no picture; leave it out")
            several += len(pictures) > 1
            ((reply,),) = self._system.reply([pictures[0].convert("RGB")], [[Question(context)]])
            replies.append("" if isinstance(reply, NoAnswer) else reply)
        if several:
            logger.warning(
                "%d of %d documents have several pictures, of which the model sees the first",
                several, len(requests),
            )  # fmt: skip
        return replies

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Not there: tasks that want likelihoods of texts cannot be run."""
        raise UserError("hermesflow gives no likelihoods to lmms-eval; choose tasks that generate")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Not there: each question stands alone."""
        raise UserError("hermesflow holds no conversations; choose tasks of one round")


MANIFEST = ModelManifest("hermesflow", simple_class_path=f"{__name__}.HermesFlow")
