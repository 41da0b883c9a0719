"""Pictures drawn by a formula: letters of alphabets that nobody ever wrote.

No photograph, no font and nobody's handwriting goes into them. A letter is one to three strokes, each a
cubic Bezier curve with random control points. Writing it moves the control points a little, bends the
sheet, turns, shears, stretches and shifts the letter, and chooses a pen. Telling such letters apart
whoever "wrote" them is a task from which a network learns strokes, bends, loops and crossings, and to
ignore what a hand changes.

The idea of pretraining on pictures from a formula is Kataoka et al. 2020, "Pre-training without Natural
Images".
"""

import dataclasses

import numpy as np

SIDE = 32  # pixels
STROKES = 3  # at most
POINTS = 32  # pen dabs along a stroke

_T = np.linspace(0, 1, POINTS, dtype=np.float32)
# Bernstein's polynomials: a point of the curve is their sum, weighted by four control points.
_BEZIER = np.stack([(1 - _T) ** 3, 3 * (1 - _T) ** 2 * _T, 3 * (1 - _T) * _T**2, _T**3])
_PIXELS = np.arange(SIDE, dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class Alphabet:
    """Letters as control points (letters, STROKES, 4, 2) in [-1, 1], and which strokes there are."""

    control: np.ndarray
    present: np.ndarray

    def __len__(self) -> int:
        return len(self.control)


def make_alphabet(letters: int, rng: np.random.Generator) -> Alphabet:
    """Invent letters: strokes that may be joined, straight or closed."""
    control = rng.uniform(-1, 1, (letters, STROKES, 4, 2)).astype(np.float32)
    count = rng.choice([1, 2, 3], letters, p=[0.3, 0.4, 0.3])
    for letter in control:
        for number, stroke in enumerate(letter):
            if number and rng.random() < 0.6:  # begins where the one before began or ended
                stroke[0] = letter[number - 1, rng.choice([0, 3])]
            kind = rng.random()
            if kind < 0.25:  # a loop
                stroke[3] = stroke[0]
            elif kind < 0.47:  # a straight line
                stroke[1:3] = stroke[0] + (stroke[3] - stroke[0]) * np.array([[1 / 3], [2 / 3]])
    return Alphabet(control, np.arange(STROKES) < count[:, None])


def write_letters(alphabet: Alphabet, letters: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Write each letter once: ink between 0 and 1, (N, SIDE, SIDE) float32."""
    n = len(letters)

    def uniform(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, (n, 1, 1)).astype(np.float32)

    def normal(deviation: float) -> np.ndarray:
        return rng.standard_normal((n, 1, 1), dtype=np.float32) * np.float32(deviation)

    present = alphabet.present[letters][:, :, None]
    unsteady = rng.standard_normal((n, STROKES, 4, 2), dtype=np.float32)
    control = alphabet.control[letters] + uniform(0, 0.18)[..., None] * unsteady
    points = np.einsum("nskc,kp->cnsp", control, _BEZIER, optimize=True)
    x, y = points  # (N, STROKES, POINTS) each

    # The sheet is bent by a slow wave in each direction.
    bend = uniform(0, 0.12)
    x, y = (
        v + bend * np.sin(uniform(-3, 3) * x + uniform(-3, 3) * y + uniform(0, 6.28))
        for v in (x, y)
    )
    angle, shear = normal(0.15), normal(0.2)
    x, y = np.cos(angle) * x - np.sin(angle) * y + shear * y, np.sin(angle) * x + np.cos(angle) * y

    # Fit into the picture, in pixels: a common size, an own stretch and place for each direction.
    pen = uniform(0.7, 1.9)  # deviation of a dab
    low_x, high_x, low_y, high_y = (*_extent(x, present), *_extent(y, present))
    size = uniform(0.6, 1) * (SIDE - 1 - 3 * pen) / np.maximum(high_x - low_x, high_y - low_y)

    def place(v: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        scale = np.minimum(size * uniform(0.75, 1.3), (SIDE + 2) / (high - low + 1e-6))
        room = np.clip((SIDE - 3 * pen - scale * (high - low)) / 2, 0, 5)
        centre = (SIDE - 1) / 2 + uniform(-1, 1) * room
        placed: np.ndarray = (v - (low + high) / 2) * scale + centre
        return placed

    x, y = place(x, low_x, high_x), place(y, low_y, high_y)

    # A dab is a two-dimensional Gaussian, so a picture is the product of two matrices: dabs' profiles
    # down the rows, weighted by ink in proportion to the way the pen goes, times profiles along columns.
    way = np.hypot(np.diff(x, append=x[..., -1:]), np.diff(y, append=y[..., -1:]))
    ink = np.where(present, way, 0) / pen * uniform(0.4, 1)
    across = _profile(x, pen).reshape(n, STROKES * POINTS, SIDE)
    down = (_profile(y, pen) * ink[..., None]).reshape(n, STROKES * POINTS, SIDE)
    ink_on_paper: np.ndarray = np.minimum(down.transpose(0, 2, 1) @ across, 1)
    return ink_on_paper


def _extent(v: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest and largest coordinate of the strokes that are present, (N, 1, 1) each."""
    low: np.ndarray = np.where(present, v, np.inf).min((1, 2), keepdims=True)
    high: np.ndarray = np.where(present, v, -np.inf).max((1, 2), keepdims=True)
    return low, high


def _profile(v: np.ndarray, pen: np.ndarray) -> np.ndarray:
    profile: np.ndarray = np.exp(-(((_PIXELS - v[..., None]) / pen[..., None]) ** 2) / 2)
    return profile


def paint(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turn ink (N, SIDE, SIDE) into pictures (N, SIDE, SIDE, 3) between 0 and 1, float32.

    The batch may be seen through a coarse scanner; each picture has its own bright colour on a darker
    one, and noise.
    """
    n = len(ink)
    coarse = rng.choice([8, 16, SIDE, SIDE])
    if coarse < SIDE:
        ink = _enlarge(ink.reshape(n, coarse, SIDE // coarse, coarse, -1).mean((2, 4)))

    def colour(low: float, high: float, spread: float) -> np.ndarray:
        grey = rng.uniform(low, high, (n, 1, 1, 1))
        return np.clip(grey + spread * rng.standard_normal((n, 1, 1, 3)), 0, 1).astype(np.float32)

    pen = np.maximum(colour(0.5, 1, 0.15), 0.2)
    sheet = np.minimum(colour(0, 0.3, 0.1), 0.4)
    sheet *= rng.random((n, 1, 1, 1)) < 0.5  # half of the sheets are black
    noise = rng.standard_normal((n, SIDE, SIDE, 3), dtype=np.float32)
    noise *= rng.uniform(0, 0.1, (n, 1, 1, 1)).astype(np.float32)
    pictures: np.ndarray = sheet + (pen - sheet) * ink[..., None] + noise
    return pictures.astype(np.float32)


def _enlarge(ink: np.ndarray) -> np.ndarray:
    """Enlarge (N, s, s) to (N, SIDE, SIDE) bilinearly; a matrix product for each axis."""
    s = ink.shape[1]
    centres = np.clip((_PIXELS + 0.5) * s / SIDE - 0.5, 0, s - 1)
    weights = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(s))).astype(np.float32)
    enlarged: np.ndarray = weights @ ink @ weights.T
    return enlarged


def draw(alphabet: Alphabet, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a batch of painted letters (count, SIDE, SIDE, 3) in [0, 1] or a little beyond, and labels."""
    labels = rng.integers(0, len(alphabet), count)
    return paint(write_letters(alphabet, labels, rng), rng), labels
