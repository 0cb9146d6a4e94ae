"""Makes `pan.mp4`: a camera moving over two CC0 photographs from scikit-image, with a quiet tone as sound.

python tests/data/make_pan.py
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from skimage import data

HEIGHT, WIDTH, RATE, SECONDS = 360, 640, 25, 2
SOUND_RATE = 48000


def window(photo, share):
    """The part of the photograph that the camera sees at `share` 0..1 of its way: closer, and to the right."""
    zoom = 1 - 0.25 * share
    width = min(photo.shape[1], photo.shape[0] * WIDTH / HEIGHT) * zoom
    height = width * HEIGHT / WIDTH
    left, top = (photo.shape[1] - width) * (0.2 + 0.6 * share), (photo.shape[0] - height) / 2
    corners = np.float32([[left, top], [left + width, top], [left, top + height]])
    target = np.float32([[0, 0], [WIDTH, 0], [0, HEIGHT]])
    matrix = cv2.getAffineTransform(corners, target)
    return cv2.warpAffine(photo, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def main():
    path = Path(__file__).with_name("pan.mp4")
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=RATE, options={"crf": "27", "preset": "slow"})
        picture.width, picture.height, picture.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        sound = container.add_stream("aac", rate=SOUND_RATE, layout="mono")
        for photo in (data.coffee(), data.chelsea()):
            for i in range(RATE * SECONDS):
                frame = av.VideoFrame.from_ndarray(window(photo, i / (RATE * SECONDS - 1)), format="rgb24")
                container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
        wave = 0.1 * np.sin(2 * np.pi * 330 * np.arange(SOUND_RATE * SECONDS * 2) / SOUND_RATE)
        for start in range(0, len(wave), 1024):
            block = av.AudioFrame.from_ndarray(wave[None, start : start + 1024].astype(np.float32), "fltp", "mono")
            block.sample_rate, block.pts, block.time_base = SOUND_RATE, start, Fraction(1, SOUND_RATE)
            container.mux(sound.encode(block))
        container.mux(sound.encode(None))


if __name__ == "__main__":
    main()
