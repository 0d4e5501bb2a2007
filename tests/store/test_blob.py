"""A blob is what it says, or it is refused."""

import random
from dataclasses import replace

import pytest

from memfold.api.errors import StateDamagedError
from memfold.store.blob import BlobKind, StateBlob, decode

BLOB = StateBlob(BlobKind.STATE, "f" * 64, "0123456789ab", 7, 3, (2, 1, 4, 4), bytes(range(128)))


def read(data: bytes) -> StateBlob:
    return decode(data, kind=BlobKind.STATE, fingerprint="f" * 64, incarnation="0123456789ab")


def test_a_blob_is_read_back_as_it_was():
    assert read(BLOB.encode()) == BLOB


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"kind": BlobKind.ANCHOR}, "kind"),
        ({"fingerprint": "e" * 64}, "fingerprint"),
        ({"incarnation": "0123456789ac"}, "incarnation"),
    ],
)
def test_what_belongs_elsewhere_is_refused_by_name(change, named):
    with pytest.raises(StateDamagedError, match=named):
        read(replace(BLOB, **change).encode())


def test_every_cut_is_noticed():
    whole = BLOB.encode()
    for length in range(len(whole)):
        with pytest.raises(StateDamagedError):
            read(whole[:length])
    with pytest.raises(StateDamagedError):
        read(whole + b"\0")


def test_every_flipped_bit_is_noticed():
    whole = BLOB.encode()
    for at in range(len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[at] ^= 1 << bit
            with pytest.raises(StateDamagedError):
                read(bytes(flipped))


def test_noise_is_refused():
    dice = random.Random(0)
    for _ in range(2000):
        with pytest.raises(StateDamagedError):
            read(dice.randbytes(dice.randint(0, 300)))


def test_a_state_of_another_size_is_not_written():
    with pytest.raises(ValueError, match="has 128 bytes, not 127"):
        replace(BLOB, data=BLOB.data[:-1]).encode()
