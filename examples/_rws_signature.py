"""Write the signature that configs/rws.yaml patches with: python examples/_rws_signature.py [FILE].

Both networks begin with the weights that the config's seed gives, and are trained as the config trains; the robust one
on digits with gaussian noise.
"""

import sys
from functools import partial

import torch
from lightning.pytorch import seed_everything

from lightning_weights.data import Digits
from lightning_weights.modules import VGG, Classifier, ShallowSelector, extract_rws
from lightning_weights.runners import SignatureTrainer

STRENGTH, LEVELS = 0.6, 16


def main(path: str = "configs/rws_digits.safetensors") -> None:
    """Train both networks, and write the signature of all layers but the classifier."""
    seed_everything(0)
    network = VGG(in_channels=1, stages=((8, 8), (16, 16), (24, 24)))
    module = Classifier(network, optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=5e-4))
    data = Digits(batch_size=32, as_images=True, image_size=16, validation_size=200)
    options = {"max_epochs": 30, "accelerator": "cpu", "devices": 1, "gradient_clip_val": 1.0, "logger": False}
    options |= {"enable_checkpointing": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    noise = {"corruption": "gaussian_noise", "strength": {"gaussian_noise": STRENGTH}}
    networks = SignatureTrainer(options, module, data, **noise).run()
    signature = extract_rws(*networks[:3], ShallowSelector(None), LEVELS, corruption="gaussian_noise")
    signature.save(path)
    print(f"{path}: robust validation accuracy {networks.score:.3f}, {signature.nbytes} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
