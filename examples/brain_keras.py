# SPDX-License-Identifier: Apache-2.0
"""The U-Net of brain.py in Keras: `python examples/brain_keras.py` (minutes; `--smoke` for seconds), `KERAS_BACKEND` says on what.

Same data, same network, same baseline, same score. Keras has no OneCycleLR; a cosine with a warm start has the same peak.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from brain import TEST, TISSUES, TRAIN, UPS, draw, overlap, report, volumes
from keras import layers
from rich.progress import track

from tconv.keras import Conv2DTranspose


def up(kind: str, result: int) -> Callable:
    """Twice the size: the layer, or the baseline of equally many weights."""
    if kind == "transposed":
        return Conv2DTranspose(result, 4, strides=2, padding="same")
    return keras.Sequential(
        [layers.UpSampling2D(interpolation="bilinear"), layers.ZeroPadding2D(((1, 2), (1, 2))), layers.Conv2D(result, 4)]
    )


def block(x: keras.KerasTensor, result: int) -> keras.KerasTensor:
    """Two convolutions of 3 x 3."""
    for _ in range(2):
        x = layers.Conv2D(result, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x))  # PyTorch's numbers
    return x


def unet(kind: str) -> keras.Model:
    """Ronneberger, Fischer and Brox, 2015, with two poolings: (n, h, w, 1) -> scores of the tissues (n, 2 h, 2 w, 3)."""
    picture = keras.Input((96, 112, 1))
    fine = block(picture, 12)
    middle = block(layers.MaxPooling2D()(fine), 24)
    x = block(layers.MaxPooling2D()(middle), 48)
    for skipped in (middle, fine):
        channels = skipped.shape[-1]
        x = block(layers.Concatenate()([up(kind, channels)(x), skipped]), channels)
    x = layers.ReLU()(up(kind, 12)(x))
    return keras.Model(picture, layers.Conv2D(len(TISSUES), 1)(x))


def train(kind: str, seed: int, pictures: np.ndarray, labels: np.ndarray, steps: int) -> keras.Model:
    """A network that has seen `steps` batches of four slices."""
    keras.utils.set_random_seed(seed)
    model, rng = unet(kind), np.random.default_rng(seed)
    warm = max(1, steps * 3 // 10)
    schedule = keras.optimizers.schedules.CosineDecay(4e-4, max(1, steps - warm), warmup_target=1e-2, warmup_steps=warm)
    model.compile(keras.optimizers.Adam(schedule), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for _ in track(range(steps), f"{kind}, seed {seed}"):
        chosen = rng.integers(len(pictures), size=4)
        model.train_on_batch(pictures[chosen], labels[chosen])
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("brain_keras.png"))
    asked = parser.parse_args()
    pictures, labels = (tensor.numpy() for tensor in volumes())
    pictures = pictures.transpose(0, 2, 3, 1)
    test, truth = (values[TEST][:: 20 if asked.smoke else 1] for values in (pictures, labels))
    sheet = {"picture, 2 mm": test[0, ..., 0], "labels, 1 mm": truth[0]}
    for kind in UPS:
        scores = []
        for seed in range(1 if asked.smoke else asked.seeds):
            model = train(kind, seed, pictures[TRAIN], labels[TRAIN], 2 if asked.smoke else asked.steps)
            found = model.predict(test, batch_size=4, verbose=0).argmax(-1)
            scores.append(overlap(found, truth))
        sheet[kind] = found[0]
        report(kind, sum(np.size(weight) for weight in model.trainable_variables), scores)
    draw(sheet, asked.out)


if __name__ == "__main__":
    main()
