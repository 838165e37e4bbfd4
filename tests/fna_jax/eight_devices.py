"""What batch_parallel.py and token_parallel.py find on eight simulated devices, printed as json.

One process for both, run by test_eight_devices.py.
"""

import json

import jax

from tests.fna_jax import batch_parallel, token_parallel

if __name__ == "__main__":
    assert jax.device_count() == 8
    print(json.dumps({"batch": batch_parallel.report(), "tokens": token_parallel.report()}))
