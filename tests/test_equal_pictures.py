"""Pictures that a prompt gave twice are judged once, and every sample keeps its own place."""

import numpy as np

from tasks.score import different_pictures


def test_only_equal_pictures_of_the_same_record_are_one() -> None:
    ids = ["b", "a", "b", "b", "a"]
    codes_BN = np.array([[1, 2], [1, 2], [1, 3], [1, 2], [9, 9]])
    first, which_B = different_pictures(ids, codes_BN)
    assert len(first) == 4
    assert [ids[i] for i in first[which_B]] == ids
    assert (codes_BN[first[which_B]] == codes_BN).all()
    assert which_B[0] == which_B[3] != which_B[1]
