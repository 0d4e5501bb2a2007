from memfold.api.values import Revision
from memfold.client.values import State


def test_a_state_in_a_log_line_is_not_its_thousands_of_numbers():
    state = State(Revision("0123456789ab", 3), "f" * 64, (4, 8, 8, 8), b"\xa5" * 8192, (1.0, 2.0, 3.0, 4.0))
    assert len(repr(state)) < 300
    assert "0123456789ab" in repr(state)
