import pytest
import tiny_clip

from convert.__main__ import main


@pytest.fixture
def source(tmp_path):
    """A shallow checkpoint to be damaged."""
    return tiny_clip.write(
        tmp_path / "source", tiny_clip.shallow_tensors(), tiny_clip.shallow_config()
    )


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs the command line, which must refuse in one line and leave nothing; gives the line."""

    def run(source, *options):
        room = tmp_path / "room"
        room.mkdir(exist_ok=True)
        capsys.readouterr()  # what making the source printed
        status = main([str(source), str(room / "destination"), *options])
        out, err = capsys.readouterr()
        assert status == 1
        assert out == ""
        assert err.startswith("error: ") and err.endswith("\n") and len(err.splitlines()) == 1
        assert list(room.iterdir()) == []
        return err

    return run
