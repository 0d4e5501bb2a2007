import hashlib
import json
import stat

from memfold.local.keys import hash_api_key, load_or_make_api_key, make_api_key, write_keys_file


def test_a_key_names_its_tenant_and_no_two_are_alike():
    first, second = make_api_key("acme"), make_api_key("acme")
    assert first.startswith("mfk_acme_")
    assert first != second


def test_the_gateway_is_given_hashes_and_never_a_key(tmp_path):
    key = make_api_key("acme")
    path = tmp_path / "api_keys.json"
    write_keys_file(path, {key: "acme"})
    assert key not in path.read_text()
    assert json.loads(path.read_text()) == {hashlib.sha256(key.encode()).hexdigest(): "acme"}
    assert hash_api_key(key) in path.read_text()


def test_the_local_key_survives_a_restart_and_only_its_owner_reads_it(tmp_path):
    path = tmp_path / "api_key"
    key = load_or_make_api_key(path, "local")
    assert load_or_make_api_key(path, "local") == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
