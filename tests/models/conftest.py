"""What tests against live PyTorch models share."""

import pytest


@pytest.fixture(scope="session")
def transformers():
    """The library, where it and PyTorch are installed."""
    from convert.originals import prepare_libraries  # which most tests do not need

    pytest.importorskip("torch")
    prepare_libraries()
    return pytest.importorskip("transformers")
