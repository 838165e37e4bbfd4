"""What a PyTorch tower's blocks take and give, by forward hooks. Needs torch."""

import contextlib


@contextlib.contextmanager
def recording(tower, stages, prefix=""):
    """Records what goes into a tower's blocks, and comes out of the last, by forward hooks.

    What goes into a block is what came out of the one before, and what was added to it there.
    """
    import torch

    lists = [module for module in tower.modules() if isinstance(module, torch.nn.ModuleList)]
    blocks = tower.blocks if hasattr(tower, "blocks") else max(lists, key=len)

    def state(value):
        return value[0] if isinstance(value, tuple) else value

    names = [f"{prefix}embeddings", *(f"{prefix}block {i}" for i in range(len(blocks)))]

    def record_input(name):
        def hook(module, inputs, keywords):
            stages[name] = state(inputs) if inputs else keywords["hidden_states"]

        return hook

    def record_output(module, inputs, output):
        stages[names[-1]] = state(output)

    handles = [
        block.register_forward_pre_hook(record_input(name), with_kwargs=True)
        for name, block in zip(names, blocks)
    ]
    handles.append(blocks[-1].register_forward_hook(record_output))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
