"""Where the evaluations find a model."""

import convert
from evals.running.pretrained import open_model


def test_a_model_of_the_hub_is_the_one_in_the_cache_folder(small_model, monkeypatch):
    asked = []

    def converted(source, *, revision):
        asked.append((str(source), revision))
        return small_model

    monkeypatch.setattr(convert, "converted", converted)
    _, folder = open_model("owner/model", "v1")
    assert folder == small_model and asked == [("owner/model", "v1")]
    open_model(small_model, None)
    assert len(asked) == 1
