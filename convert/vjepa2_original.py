"""V-JEPA 2 of transformers, run on videos. Needs torch and transformers."""

from convert.recording import recording


def open_at_sizes(transformers, values, state, **options):
    """A function of pixels `[B, F, 3, side, side]` that gives transformers' stages of them.

    transformers counts places by the `crop_size` of the config, whatever the size of the videos.
    So the model is opened for the size that comes, and only squares can be compared.

    Args:
      transformers: the module.
      values: the checkpoint's config, that was parsed without an error.
      state: the tensors by name, for torch.
      **options: of `from_pretrained`.
    """
    has_classifier = "classifier.weight" in state
    name = "VJEPA2ForVideoClassification" if has_classifier else "VJEPA2Model"
    model_class = getattr(transformers, name)

    def run(pixels):
        config = model_class.config_class.from_dict(values | {"crop_size": pixels.shape[-1]})
        model = model_class.from_pretrained(None, config=config, state_dict=state, **options).eval()
        return _stages(model, pixels, has_classifier)

    return run


def _stages(model, pixels, has_classifier):
    backbone, stages = model.vjepa2 if has_classifier else model, {}
    with recording(backbone.encoder, stages):
        output = backbone(pixel_values_videos=pixels, skip_predictor=True)
    stages["tokens"] = output.last_hidden_state
    if has_classifier:
        stages["pooled"] = model.pooler(stages["tokens"])
        stages["logits"] = model(pixel_values_videos=pixels).logits
    return stages
