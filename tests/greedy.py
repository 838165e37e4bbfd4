"""What models of transformers and ours write, compared."""

import numpy as np


def assert_same_64_tokens(original, inputs, write):
    """The likeliest 64 tokens behind prompts, of which some differ.

    Args:
      original: a model of transformers.
      inputs: the prompts as it takes them, by name.
      write: our model, a function of `max_new_tokens`.
    """
    written = original.generate(
        **inputs, max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    expected = written.numpy()[:, inputs["input_ids"].shape[1] :]
    actual = np.asarray(write(max_new_tokens=64))
    np.testing.assert_array_equal(actual, expected)
    assert len(np.unique(actual)) > 5
