"""Random light, colour, sharpness and resolution, for face images as they are found in the wild.

The changes are those of arcface_torch's ``dali_aug`` (recognition/arcface_torch/dataset.py), and brightness and
contrast besides. As for the geometry in :mod:`megaclass.data.augment`, randomness is a function of (seed, global
sample number) alone, planned for a whole batch at once.

Brightness, contrast, hue, saturation and grey are affine maps of a pixel's (R, G, B), so they make one 3 x 4
matrix a sample: one pass over the pixels, clipped and rounded once.

Shapes: N = samples, K = numbers a sample, S = image size, H, W = size of a decoded image, C = 3.
"""

import cv2
import numpy as np

from megaclass.config.sections import Augment
from megaclass.data.augment import resized, uniforms, within

# To luma and two colour axes and back (YIQ of NTSC, as DALI's hsv operator has it, to the third digit: colours
# sum to 0 here, so that grey stays grey).
_YIQ_33 = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_RGB_33 = np.linalg.inv(_YIQ_33)
# A turn of the hue by h and a saturation s make luma + s cos(h) same + s sin(h) turned.
_LUMA_33 = _RGB_33[:, :1] @ _YIQ_33[:1]
_SAME_33 = _RGB_33[:, 1:] @ _YIQ_33[1:]
_TURNED_33 = _RGB_33[:, 1:] @ np.array([[0.0, 1.0], [-1.0, 0.0]]) @ _YIQ_33[1:]
_MIDDLE = 128.0  # the value that a change of contrast leaves as it is
_CHANGES = ("low_resolution", "blur", "light", "colour", "grey")


class Photometric:
    """Changes of pixel values, in place. Each ``..._probability`` is of one change of a sample, drawn apart.

    - low resolution: scaled down to a share of the side drawn from ``low_resolution``, and up again;
    - blur: Gaussian, ``radius`` pixels either side, drawn from 1 to ``blur_radius``, with the deviation
      0.3 (radius - 1) + 0.8;
    - light: ``brightness * (128 + contrast * (value - 128))``, both drawn from their ranges;
    - colour: the hue turned by degrees drawn from ``hue_degrees``, the saturation times a number drawn from
      ``saturation``;
    - grey: luma alone.

    They follow one another in this order. A range is (lowest, highest).
    """

    columns = 15

    def __init__(self, settings: Augment, seed: int) -> None:
        self._settings = settings
        self._probability_5 = np.array([getattr(settings, f"{change}_probability") for change in _CHANGES])
        self._seed = seed

    @property
    def changes(self) -> bool:
        """Whether any image is changed at all."""
        return bool(self._probability_5.any())

    def plan(self, sample_numbers_N: np.ndarray) -> np.ndarray:
        """Columns: share of the side that remains (0: no change); radius of the blur (0: none); whether the
        pixels' values change; the 3 x 4 matrix that changes them, row by row."""
        settings, draws_NK = self._settings, uniforms(self._seed, sample_numbers_N, 11)
        low, blur, light, colour, grey = (draws_NK[:, :5] < self._probability_5).T
        share_N, radius_N, brightness_N, contrast_N, hue_N, saturation_N = draws_NK[:, 5:].T
        plan_NK = np.empty((len(draws_NK), self.columns))
        plan_NK[:, 0] = np.where(low, within(settings.low_resolution, share_N), 0)
        plan_NK[:, 1] = np.where(blur, 1 + np.floor(radius_N * settings.blur_radius), 0)
        plan_NK[:, 2] = light | colour | grey

        bright_N = np.where(light, within(settings.brightness, brightness_N), 1)
        contrast_N = np.where(light, within(settings.contrast, contrast_N), 1)
        hue_N = np.radians(np.where(colour, within(settings.hue_degrees, hue_N), 0))
        saturation_N = np.where(colour, within(settings.saturation, saturation_N), 1) * ~grey
        same_N11 = (saturation_N * np.cos(hue_N))[:, None, None]
        turned_N11 = (saturation_N * np.sin(hue_N))[:, None, None]
        matrix_N34 = plan_NK[:, 3:].reshape(-1, 3, 4)
        matrix_N34[:, :, :3] = _LUMA_33 + same_N11 * _SAME_33 + turned_N11 * _TURNED_33
        matrix_N34[:, :, :3] *= (bright_N * contrast_N)[:, None, None]
        # A shift of all three channels is grey, and the colour's part of the matrix keeps greys.
        matrix_N34[:, :, 3] = (bright_N * _MIDDLE * (1 - contrast_N))[:, None]
        return plan_NK

    def __call__(self, image_SSC: np.ndarray, plan_K: np.ndarray) -> None:
        """Change the uint8 image as planned, in place. Releases the GIL; any thread may call."""
        share, radius, recolours = plan_K[:3].tolist()
        if share:
            size = image_SSC.shape[0]
            small = max(1, round(size * share))
            resized(resized(image_SSC, small, small), size, size, out=image_SSC)
        if radius:
            window = 2 * int(radius) + 1
            cv2.GaussianBlur(image_SSC, (window, window), 0.3 * (radius - 1) + 0.8, dst=image_SSC)
        if recolours:
            cv2.transform(image_SSC, plan_K[3:].reshape(3, 4), dst=image_SSC)
