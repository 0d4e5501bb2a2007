"""Names of readers: their form, and what they stand for."""

import pytest
from pydantic import ValidationError

from memfold_gateway.reader_name import ReaderName


async def test_a_name_is_asked_of_the_system_and_stands_for_addresses():
    (name,) = ReaderName.parse_list("dns:///localhost:50052")
    assert await name.addresses() & {"127.0.0.1:50052", "[::1]:50052"}
    both = ReaderName.parse_list("10.0.0.1:1, [::1]:2")
    assert both == (ReaderName("10.0.0.1", 1), ReaderName("::1", 2))
    assert await both[1].addresses() == {"[::1]:2"}


@pytest.mark.parametrize("target", ["", "reader", "reader:http", "http://reader:1", "a:1,,b:2", "a:0"])
def test_a_target_of_another_form_is_refused_by_name(kit, tmp_path, target):
    with pytest.raises(ValidationError, match="reader_target"):
        kit.settings(tmp_path, "redis://127.0.0.1:1/0", target)
