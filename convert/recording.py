"""What a PyTorch tower's blocks take and give, by forward hooks. Needs torch."""

import contextlib


@contextlib.contextmanager
def recording(tower, stages, prefix=""):
    """Records the input of a tower's first block and the output of each, by forward hooks."""
    import torch

    lists = [module for module in tower.modules() if isinstance(module, torch.nn.ModuleList)]
    blocks = tower.blocks if hasattr(tower, "blocks") else max(lists, key=len)

    def state(value):
        return value[0] if isinstance(value, tuple) else value

    def record_output(i):
        def hook(module, inputs, output):
            stages[f"{prefix}block {i}"] = state(output)

        return hook

    def record_input(module, inputs, keywords):
        stages[f"{prefix}embeddings"] = state(inputs) if inputs else keywords["hidden_states"]

    handles = [blocks[0].register_forward_pre_hook(record_input, with_kwargs=True)]
    handles += [block.register_forward_hook(record_output(i)) for i, block in enumerate(blocks)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
