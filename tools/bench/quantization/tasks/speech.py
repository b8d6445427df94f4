"""Silero's voice activity detector on recordings of speech (Debian package pocketsphinx-testdata)."""

from __future__ import annotations

import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tools.bench.quantization import quality
from tools.bench.quantization.task import Array, Example, Feeds, Prediction, Run, Task

FOLDER = Path("/usr/share/pocketsphinx/test/data")
FRAME, CONTEXT, RATE = 512, 64, 16000
THRESHOLD = 0.5


class Speech(Task):
    """Is somebody speaking? The state of each frame is fed to the next, so that errors add up."""

    name = "silero_vad"
    kind = "Speech"
    agreement_is = "frames with equal answers, %"

    def calibration(self) -> Sequence[Feeds]:
        """200 frames of other recordings, with the states that the fp32 model has there."""
        frames: list[Feeds] = []
        with quality.opened(self.model()) as run:

            def recorded(feeds: Feeds) -> list[Array]:
                frames.append(feeds)
                return run(feeds)

            for example in recordings("cards/*.wav", seed=1):
                self.predict(recorded, example)
        return [frames[i] for i in np.random.default_rng(1).permutation(len(frames))[:200]]

    def examples(self) -> Sequence[Example]:
        """Books read aloud, with pauses and noise."""
        return recordings("librivox/*.wav", seed=2)

    def workloads(self) -> dict[str, Feeds]:
        """One frame, and 32 at a time."""
        one = self.calibration()[0]
        many = {"input": np.repeat(one["input"], 32, 0), "state": np.repeat(one["state"], 32, 1)}
        return {"batch 1": one, "batch 32": one | many}

    def predict(self, run: Run, example: Example) -> Prediction:
        """Probabilities of speech per frame [frames], and which exceed the threshold."""
        sound, state = example.feeds["sound"], np.zeros((2, 1, 128), np.float32)
        found = []
        for start in range(CONTEXT, len(sound) - FRAME + 1, FRAME):
            frame = sound[None, start - CONTEXT : start + FRAME]
            probability, state = run({"input": frame, "state": state, "sr": np.array(RATE)})
            found.append(float(probability[0, 0]))
        values = np.array(found)
        return Prediction(values, values > THRESHOLD)


def recordings(pattern: str, seed: int) -> list[Example]:
    """Recordings by name, every other one with noise, each between two seconds of pause.

    Raises:
        FileNotFoundError: they are not installed.
    """
    files = sorted(FOLDER.glob(pattern))
    if not files:
        raise FileNotFoundError(f"no {pattern} in {FOLDER}: install pocketsphinx-testdata")
    rng = np.random.default_rng(seed)
    return [Example({"sound": disturbed(read(file), 0.03 * (i % 2), rng)}) for i, file in enumerate(files)]


def read(file: Path) -> Array:
    """Samples of a 16-bit mono recording, float32 in -1…1."""
    with wave.open(str(file)) as sound:
        if (sound.getframerate(), sound.getnchannels(), sound.getsampwidth()) != (RATE, 1, 2):
            raise ValueError(f"{file} is not 16 kHz, 16 bit, mono")
        return np.frombuffer(sound.readframes(sound.getnframes()), "<i2").astype(np.float32) / 32768


def disturbed(sound: Array, noise: float, rng: np.random.Generator) -> Array:
    """The sound after and before a pause, with normal noise of this deviation and a little everywhere."""
    padded = np.pad(sound, 2 * RATE)
    return (padded + rng.normal(0, noise + 1e-3, len(padded))).astype(np.float32)


def task(name: str) -> Task:
    """The task."""
    return Speech()
