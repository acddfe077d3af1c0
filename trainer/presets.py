"""Every hyper-parameter of the three presets, each with its source.

[paper] Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural
Networks", NIPS 2012, with its section. [2012] the source code of that work with its laboratory
notes, published by the Computer History Museum in 2025 (AlexNet-Source-Code), with its file:
`layers-145.cfg` is the network, `layer-params-145*.cfg` its rates and notes. [he] He et al.,
"Delving Deep into Rectifiers", ICCV 2015. [goyal] Goyal et al., "Accurate, Large Minibatch SGD",
2017. [sgdr] Loshchilov and Hutter, "SGDR", ICLR 2017. [ours] our choice.
"""

import json
from typing import Any

from trainer.override import FIELDS, flatten, preset_from_dict
from trainer.preset import Preset

__all__ = ["KRIZ2012", "MODERN", "PAPER", "PRESETS", "Preset", "describe_preset", "find_preset"]

Rows = dict[str, tuple[Any, str]]  # value and source by dotted name

_PAPER: Rows = {
    "network.columns": (2, "[paper §3.2] one per GPU"),
    "network.exchange": (True, "[paper §3.5] conv3 and the fully-connected layers see both"),
    "network.channels": ([96, 256, 384, 384, 256], "[paper §3.5]"),
    "network.conv6": (0, "[paper §3.5] five; §6.1 has a sixth in CNN*"),
    "network.hidden": ([4096, 4096], "[paper §3.5]"),
    "network.removed": ([], "[paper §3.5] none; §6.1 and §7 tell what removing one costs"),
    "network.activation": ("relu", "[paper §3.1]"),
    "network.layer1_order": ("conv-relu-norm-pool", "[paper §3.3, §3.5]"),
    "network.pool_px": (3, "[paper §3.4] z = 3, s = 2"),
    "network.norm": ("response", "[paper §3.3]"),
    "network.response_k": (2.0, "[paper §3.3]"),
    "network.response_size": (5, "[paper §3.3] n"),
    "network.response_alpha": (1e-4, "[paper §3.3]"),
    "network.response_alpha_divided": (False, "[paper §3.3] as printed"),
    "network.response_beta": (0.75, "[paper §3.3]"),
    "network.map_norm_px": (0, "[paper §3.5] pooling follows at once"),
    "network.map_norm_scale": (0.001, "unused without map_norm_px; as in kriz2012"),
    "network.map_norm_power": (0.75, "unused without map_norm_px; as in kriz2012"),
    "network.init": ("normal", "[paper §5]"),
    "network.init_std": (0.01, "[paper §5]"),
    "network.deep_init_std": (0.01, "[paper §5] the same in each layer"),
    "network.ones_biases": (True, "[paper §5]"),
    "network.dropout": (True, "[paper §4.2]"),
    "augmentation.mean": ("image-at-crop", "[paper §2] the mean over the training set, per pixel"),
    "augmentation.lighting": ("variance", "[paper §4.1] as printed: alpha times eigenvalue"),
    "augmentation.lighting_off_epoch": (0, "[paper §4.1] every time an image is used"),
    "augmentation.input_divisor": (1.0, "[paper §4.1] none"),
    "augmentation.images_per_crop": (1, "[paper §4.1] a random patch of each image"),
    "training.batch_size": (128, "[paper §5]"),
    "training.learning_rate": (0.01, "[paper §5]"),
    "training.batch_exponent": (
        1.0, "[2012 lab notes] batch 256 at twice the rate \"matches exactly\", 1,024 does not"
    ),
    "training.momentum": (0.9, "[paper §5]"),
    "training.nesterov": (False, "[paper §5]"),
    "training.weight_decay": (0.0005, "[paper §5]"),
    "training.decay_vectors": (True, "[paper §5] the rule is stated for every w"),
    "training.vector_rate_factor": (1.0, "[paper §5] an equal learning rate for all layers"),
    "training.rescale_momentum": (True, "[paper §5] v holds steps of the rate of their time"),
    "training.schedule": ("plateau", "[paper §5]"),
    "training.epochs": (90, "[paper §5] \"roughly 90 cycles\""),
    "training.drop_factor": (10.0, "[paper §5]"),
    "training.drop_epochs": ([], "unused with plateau"),
    "training.num_drops": (3, "[paper §5]"),
    "training.patience_epochs": (5, "[ours] the paper: when it \"stopped improving\""),
    "training.warmup_epochs": (0.0, "[paper §5] none"),
    "training.layer_rates": ([], "[paper §5] an equal learning rate for all layers"),
    "training.precision": ("fp32", "[paper §5] the GPUs of 2012"),
}

_KRIZ2012: Rows = {
    "network.columns": (2, "[2012 layers-145.cfg] conv1a, conv1b, ..."),
    "network.exchange": (True, "[2012 layers-145.cfg] two inputs of conv3, fc2048, fc2048b"),
    "network.channels": ([96, 256, 384, 384, 256], "[2012 layers-145.cfg]"),
    "network.conv6": (0, "[2012 layers-145.cfg]; 256 in layers-146"),
    "network.hidden": ([4096, 4096], "[2012 layers-145.cfg]"),
    "network.removed": ([], "[2012 layers-145.cfg]"),
    "network.activation": ("relu", "[2012 layers-145.cfg]"),
    "network.layer1_order": ("conv-norm-pool-relu", "[2012 layers-145.cfg] neuron of pool1"),
    "network.pool_px": (3, "[2012 layers-145.cfg]; 2 in layers-147.cfg"),
    "network.norm": ("response", "[2012 layers-145.cfg] cmrnorm; none in layers-148.cfg"),
    "network.response_k": (2.0, "[2012 layer-params-145.cfg] minDiv"),
    "network.response_size": (5, "[2012 layers-145.cfg]"),
    "network.response_alpha": (1e-4, "[2012 layer-params-145.cfg] scale"),
    "network.response_alpha_divided": (True, "[2012 layer.py] NormLayerParser"),
    "network.response_beta": (0.75, "[2012 layer-params-145.cfg] pow"),
    "network.map_norm_px": (5, "[2012 layers-145.cfg] cnorm2, of type rnorm"),
    "network.map_norm_scale": (0.001, "[2012 layer-params-145.cfg] scale; layer.py: over 5 * 5"),
    "network.map_norm_power": (0.75, "[2012 layer-params-145.cfg] pow"),
    "network.init": ("normal", "[2012 layers-145.cfg] initW"),
    "network.init_std": (0.01, "[2012 layers-145.cfg] initW"),
    "network.deep_init_std": (0.03, "[2012 layers-145.cfg] initW of conv3..conv5"),
    "network.ones_biases": (True, "[2012 layers-145.cfg] initB"),
    "network.dropout": (True, "[2012 layers-145.cfg] hs1, hs2"),
    "augmentation.mean": ("image-centre", "[2012 convdata.py] data_mean_crop"),
    "augmentation.lighting": ("std", "[2012 convdata.py] color_stdevs"),
    "augmentation.lighting_off_epoch": (68, "[2012 layer-params-145-2010.cfg] notes"),
    "augmentation.input_divisor": (1.1, "[2012 convdata.py] 1 + color_noise_coeff"),
    "augmentation.images_per_crop": (32, "[2012 convdata.py] crop_chunk"),
    "training.batch_size": (128, "[paper §5]"),
    "training.learning_rate": (0.01, "[2012 layer-params-145-2010.cfg] notes"),
    "training.batch_exponent": (
        1.0, "[2012 lab notes] batch 256 at twice the rate \"matches exactly\", 1,024 does not"
    ),
    "training.momentum": (0.9, "[2012 layer-params-145.cfg] momW, momB"),
    "training.nesterov": (False, "[2012 weights.cu]"),
    "training.weight_decay": (0.0005, "[2012 layer-params-145.cfg] wc"),
    "training.decay_vectors": (False, "[2012 layer.py] wc is one number per weight matrix"),
    "training.vector_rate_factor": (2.0, "[2012 layer-params-145.cfg] epsB .02, epsW .01 first"),
    "training.rescale_momentum": (True, "[2012 weights.cu] weightsInc holds past steps"),
    "training.schedule": ("steps", "[2012 layer-params-145-2010.cfg] notes"),
    "training.epochs": (93, "[2012 layer-params-145-2010.cfg] notes"),
    "training.drop_factor": (10.0, "[2012 layer-params-145-2010.cfg] notes"),
    "training.drop_epochs": ([23, 51, 78], "[2012 layer-params-145-2010.cfg] notes"),
    "training.num_drops": (3, "unused with steps"),
    "training.patience_epochs": (5, "unused with steps"),
    "training.warmup_epochs": (0.0, "unused with steps"),
    "training.layer_rates": (
        [[68, "conv1", 0.1], [72, "conv1", 0.0]],
        "[2012 layer-params-145-2010.cfg] notes: from 1e-4 to 1e-5, then 0",
    ),
    "training.precision": ("fp32", "[2012] the GPUs of 2012"),
}

_MODERN: Rows = {
    "network.columns": (2, "[paper §3.2]"),
    "network.exchange": (True, "[paper §3.5]"),
    "network.channels": ([96, 256, 384, 384, 256], "[paper §3.5]"),
    "network.conv6": (0, "[paper §3.5]"),
    "network.hidden": ([4096, 4096], "[paper §3.5]"),
    "network.removed": ([], "[paper §3.5]"),
    "network.activation": ("relu", "[paper §3.1]"),
    "network.layer1_order": ("conv-relu-norm-pool", "[paper §3.3, §3.5]"),
    "network.pool_px": (3, "[paper §3.4]"),
    "network.norm": ("batch", "[ours] where the paper has response norm"),
    "network.response_k": (2.0, "unused with batch norm"),
    "network.response_size": (5, "unused with batch norm"),
    "network.response_alpha": (1e-4, "unused with batch norm"),
    "network.response_alpha_divided": (False, "unused with batch norm"),
    "network.response_beta": (0.75, "unused with batch norm"),
    "network.map_norm_px": (0, "[paper §3.5]"),
    "network.map_norm_scale": (0.001, "unused without map_norm_px"),
    "network.map_norm_power": (0.75, "unused without map_norm_px"),
    "network.init": ("kaiming", "[he §2.2]"),
    "network.init_std": (0.0, "unused with kaiming"),
    "network.deep_init_std": (0.0, "unused with kaiming"),
    "network.ones_biases": (False, "[he §2.2]"),
    "network.dropout": (True, "[paper §4.2]"),
    "augmentation.mean": ("channel", "[ours] prediction then needs no mean image"),
    "augmentation.lighting": ("std", "[2012 convdata.py] color_stdevs"),
    "augmentation.lighting_off_epoch": (0, "[paper §4.1]"),
    "augmentation.input_divisor": (1.0, "[paper §4.1] none"),
    "augmentation.images_per_crop": (1, "[paper §4.1]"),
    "training.batch_size": (1024, "[ours] keeps a large GPU busy"),
    "training.learning_rate": (0.08, "[goyal §2.1] the paper's .01 at 128, scaled linearly"),
    "training.batch_exponent": (0.5, "[ours] linear scaling learns too slowly at 32..128"),
    "training.momentum": (0.9, "[goyal §5.1]"),
    "training.nesterov": (True, "[goyal §5.1]"),
    "training.weight_decay": (0.0005, "[paper §5]"),
    "training.decay_vectors": (False, "[goyal §5.1]"),
    "training.vector_rate_factor": (1.0, "[ours]"),
    "training.rescale_momentum": (False, "[ours] the rate moves at every step by little"),
    "training.schedule": ("cosine", "[sgdr] without restarts"),
    "training.epochs": (90, "[paper §5]"),
    "training.drop_factor": (10.0, "unused with cosine"),
    "training.drop_epochs": ([], "unused with cosine"),
    "training.num_drops": (0, "unused with cosine"),
    "training.patience_epochs": (5, "unused with cosine"),
    "training.warmup_epochs": (5.0, "[goyal §2.2]"),
    "training.layer_rates": ([], "[ours]"),
    "training.precision": ("bf16", "[ours]"),
}


def _read(name: str, rows: Rows) -> Preset:
    fields: dict[str, Any] = {"name": name}
    return preset_from_dict(fields | {field: value for field, (value, _) in rows.items()})


_ROWS = {"modern": _MODERN, "paper": _PAPER, "kriz2012": _KRIZ2012}
PRESETS = {name: _read(name, rows) for name, rows in _ROWS.items()}
MODERN, PAPER, KRIZ2012 = PRESETS.values()


def find_preset(name: str) -> Preset:
    """The preset of that name; ValueError naming those there are."""
    if name not in PRESETS:
        raise ValueError(f"--preset {name!r} is unknown; expected one of: {', '.join(PRESETS)}")
    return PRESETS[name]


def describe_preset(preset: Preset) -> str:
    """The fields as a TOML file that --config takes, each with its source.

    Where a value is not that of the preset of this name, its comment says what it was.
    """
    original, own = flatten(find_preset(preset.name).to_dict()), flatten(preset.to_dict())
    lines = [f"# {preset.name}"]
    for field in FIELDS:
        owner, name = field.split(".")
        if f"[{owner}]" not in lines:
            lines += ["", f"[{owner}]"]
        comment = _ROWS[preset.name][field][1]
        if own[field] != original[field]:
            comment = f"set; {preset.name} has {json.dumps(original[field])}"
        lines.append(f"{f'{name} = {json.dumps(own[field])}':<42} # {comment}")
    return "\n".join(lines)
