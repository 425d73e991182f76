"""A picture that a Janus network draws, as a leaf of a packed tree (`models.nn.chat`)."""

from models.nn.packing import Segment
from models.tokenizers.chat import Ids


def drawn_picture(codes_N: Ids, vocab_size: int, parent: int = 0) -> Segment:
    """Behind its prompt, one code predicted from the one before.

    Codes stand in rows as ids from the size of the vocabulary on.
    """
    return Segment(codes_N[:-1] + vocab_size, parent, labels=codes_N)
