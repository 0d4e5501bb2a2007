import stat

import pytest

from memfold.local.connection import Connection
from memfold.local.errors import LocalPlatformError, NotRunningError
from memfold.local.paths import DataDir


def test_a_client_reads_what_the_platform_left(tmp_path):
    data_dir = DataDir(tmp_path)
    left = Connection("127.0.0.1:50051", "mfk_local_x")
    left.write(data_dir)
    assert Connection.read(data_dir) == left
    assert stat.S_IMODE(data_dir.connection.stat().st_mode) == 0o600


def test_where_no_platform_runs_the_error_says_how_to_start_one(tmp_path):
    with pytest.raises(NotRunningError, match="memfold up"):
        Connection.read(DataDir(tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"target": "x"}'])
def test_a_damaged_connection_file_is_named(tmp_path, text):
    data_dir = DataDir(tmp_path)
    data_dir.connection.write_text(text)
    with pytest.raises(LocalPlatformError, match=r"connection\.json is damaged"):
        Connection.read(data_dir)
