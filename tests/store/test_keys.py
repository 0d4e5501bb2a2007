"""Where keys lie."""

import re
from importlib.resources import files

from redis.crc import key_slot

from memfold.api.values import MemoryName
from memfold.store import keys
from memfold.store.keys import MemoryKeys, memory_keys


def test_all_keys_of_a_memory_lie_in_one_slot_and_differ():
    for at in range(50):
        name = MemoryName("acme", f"m{at}")
        found = keys.both_lines(name, "f" * 64, "e" * 64)
        assert len({key_slot(key.encode()) for key in found}) == 1
        assert len(set(found)) == len(found)


def test_the_keys_for_appending_are_the_first_of_each_line():
    name = MemoryName("acme", "bob")
    one, two = memory_keys(name, "f" * 64), memory_keys(name, "e" * 64)
    assert keys.hot_keys(name, "f" * 64, "") == one[:6]
    assert keys.hot_keys(name, "f" * 64, "e" * 64) == (*one[:6], two.line, two.dirty, two.behind)


def test_partitions_spread_over_the_slots():
    slots = {key_slot(keys.dirty(at, "f").encode()) for at in range(1024)}
    assert len(slots) > 900


def test_names_survive_the_queue():
    name = MemoryName("acme-1", "A.b_~-c")
    assert keys.name_of(keys.member(name).encode()) == name


def test_scripts_number_the_keys_as_they_are_given():
    common = (files("memfold.store") / "scripts" / "common.lua").read_text()
    numbered = re.findall(r"local ([A-Z_, ]+) = ([0-9, ]+)\n", common)
    (first, _), (second, _), lines = numbered
    assert f"{first}, {second}".lower().split(", ") == list(MemoryKeys._fields)
    assert ", ".join(numbers for _, numbers in numbered[:2]) == ", ".join(
        str(at) for at in range(1, len(MemoryKeys._fields) + 1)
    )
    name = MemoryName("acme", "bob")
    both = keys.both_lines(name, "f" * 64, "e" * 64)
    assert lines[0] == "SERVING, BUILDING"
    serving, building = (int(number) for number in lines[1].split(", "))
    assert (serving, both[3 + building : 9 + building]) == (0, memory_keys(name, "e" * 64)[3:9])


def test_scripts_touch_only_keys_that_they_are_given():
    for script in (files("memfold.store") / "scripts").iterdir():
        for call in re.findall(r"redis\.call\('(\w+)', *([^,)]+)", script.read_text()):
            command, first = call
            assert command in {"PUBLISH", "TIME"} or first.startswith("KEYS["), (script.name, call)
