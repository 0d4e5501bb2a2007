from memfold.api.values import Memory, MemoryName, Policy, Role, Turn
from memfold.cli.memories import _facts, _said, memory_as_dict, turn_as_dict

MEMORY = Memory(
    name=MemoryName("acme", "alice"),
    incarnation="0123456789ab",
    head=7,
    applied=5,
    fingerprint="f" * 64,
    building="e" * 64,
    building_applied=3,
    quarantined=6,
    forked_from="tenants/acme/memories/bob",
    policy=Policy(ttl_s=86400, retention_s=3600, keep_last=9),
)


def test_a_memory_is_told_with_its_rebuild_its_quarantine_its_origin_and_its_policy():
    said = "\n".join(f"{key}: {value}" for key, value in _facts(MEMORY))
    for words in (
        "e" * 64 + ", 4 turns to go",
        "turn 6 cannot be folded",
        "memories/bob",
        "deleted: 1 day after its last turn",
        "forgets: each turn after 1 hour",
        "newest 9",
    ):
        assert words in said
    plain = dict(_facts(Memory(MemoryName("acme", "alice"), "0123456789ab")))
    assert not {"rebuilding", "quarantined", "forked from", "deleted", "forgets"} & plain.keys()


def test_programs_get_the_same_facts():
    found = memory_as_dict(MEMORY)
    assert (found["building_fingerprint"], found["building_lag_turns"]) == ("e" * 64, 4)
    assert (found["quarantined_sequence"], found["forked_from"]) == (6, "tenants/acme/memories/bob")
    assert found["policy"] == {"ttl_s": 86400, "retention_s": 3600, "keep_last": 9}


def test_a_turn_that_is_not_folded_and_the_entry_that_says_so_are_told_apart():
    skipped = Turn("t3", Role.USER, "poison", sequence=3, skipped=True)
    entry = Turn("", Role.SYSTEM, "", sequence=4, skips=3)
    assert _said(skipped) == "user: poison (not folded)"
    assert _said(entry) == "(turn 3 is not folded)"
    assert (turn_as_dict(entry)["skips"], turn_as_dict(skipped)["skipped"]) == (3, True)
