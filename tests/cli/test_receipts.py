import json

import pytest

from memfold.api.errors import MemoryExistsError
from memfold.api.values import KeptRevision, OperationKind, Revision
from memfold.cli.receipts import as_dict, sentences
from memfold.client import (
    ForgetReceipt,
    ForkHolding,
    ForkReceipt,
    Operation,
    RebuildReceipt,
    RollbackReceipt,
    VerifyReceipt,
)

OLD, NEW = Revision("0123456789ab", 4), Revision("ba9876543210", 7)
FORGET = ForgetReceipt(
    NEW, OLD, (5, 6), ("a", "b"), (6,), (ForkHolding("tenants/t/memories/c", 2, 0),), True, False, "no permission",
    removed_turns=2, ranges=((5, 6),),
)  # fmt: skip
MANY = ForgetReceipt(
    NEW,
    OLD,
    tuple(range(1, 1001)),
    ("x",) * 1000,
    (),
    (),
    True,
    True,
    "",
    50_000,
    tuple((at, at) for at in range(1, 50, 2)),
)


@pytest.mark.parametrize(
    ("receipt", "said"),
    [
        (ForkReceipt("tenants/t/memories/b", NEW, OLD, 4), ["tenants/t/memories/b", "4 turns", str(OLD)]),
        (RollbackReceipt(NEW, OLD, 3), ["3 turns are gone", "folded again"]),
        (RollbackReceipt(NEW, OLD, 1), ["1 turn is gone"]),
        (RollbackReceipt(NEW, OLD, 1, True, False, "no permission"), ["the log was written anew", "no permission"]),
        (MANY, ["forgot 50,000 turns: 1, 3,", "39, ..."]),
        (
            FORGET,
            [
                "forgot 2 turns: 5 to 6",
                "tenants/t/memories/c: 0 forgotten, 2 still held (--include-forks",
                "no permission",
            ],
        ),
        (RebuildReceipt("e" * 64, "f" * 64, NEW), ["e" * 16, "f" * 16]),
        (RebuildReceipt("e" * 64, "", NEW), ["already"]),
        (VerifyReceipt(True, NEW, "f", 7, True, True, 1e-7, b"", b""), ["sound at", "1.0e-07"]),
        (VerifyReceipt(False, NEW, "f", 7, False, True, 1e-7, b"", b""), ["NOT SOUND", "DO NOT MATCH"]),
    ],
)
def test_a_receipt_is_told_in_words(receipt, said):
    text = "\n".join(sentences(receipt))
    for words in said:
        assert words in text


@pytest.mark.parametrize(
    ("forks", "said"),
    [
        ((), ["no turn was meant; nothing has changed"]),
        (
            (ForkHolding("tenants/t/memories/c", 0, 2),),
            ["no turn of it was meant", "tenants/t/memories/c: 2 forgotten, 0 still held"],
        ),
    ],
)
def test_what_only_copies_forgot_is_told_too(forks, said):
    assert list(sentences(ForgetReceipt(NEW, None, (), (), (), forks, True, True, ""))) == said


def test_where_nothing_is_folded_again_nothing_says_so():
    assert "folded again" not in "\n".join(sentences(RollbackReceipt(NEW, NEW, 0)))


def test_an_operation_is_json_for_programs():
    operation = Operation("o", OperationKind.FORGET, True, 1_700_000_000_000, 1_700_000_000_000, receipt=FORGET)
    found = json.loads(json.dumps(as_dict(operation)))
    assert (found["kind"], found["create_time"]) == ("forget", "2023-11-14T22:13:20.000Z")
    assert found["receipt"]["revision"] == str(NEW)
    assert found["receipt"]["sequences"] == [5, 6]
    assert found["receipt"]["forks"][0]["held_turns"] == 2
    failed = Operation("o", OperationKind.FORK, True, 0, 0, error=MemoryExistsError("b exists"))
    assert as_dict(failed)["error"] == {"reason": "MEMORY_ALREADY_EXISTS", "message": "b exists"}


def test_digests_are_told_in_hex():
    kept = as_dict(KeptRevision(NEW, "ff", b"\x01" * 32, b"\x02" * 32, 0))
    assert (kept["log_digest"], kept["state_digest"], kept["commit_time"]) == ("01" * 32, "02" * 32, "")
