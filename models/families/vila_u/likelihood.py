"""A picture that a VILA-U network draws, as a leaf of a packed tree (`models.nn.chat`).

Shapes: N positions of a picture, D codes of each.
"""

import numpy as np

from models.nn.packing import Segment
from models.tokenizers.chat import Ids


def drawn_picture(codes_ND: Ids, pad_id: int, parent: int = 0) -> Segment:
    """Behind its prompt, all codes of a position predicted from the state before it.

    Positions carry their codes as features, as those of a picture that is read do.
    """
    places = np.full(len(codes_ND) - 1, pad_id, dtype=np.int64)
    return Segment(places, parent, labels=codes_ND, features=codes_ND[:-1])
