"""Movies of blinking molecules with known truth: structures, labels, blinking, drift, any PSF, any camera.

`blinking_movie` draws isolated molecules, each lit in one frame.  `Movie` links the parts for all else:

>>> import numpy as np
>>> from smlmcore import simulate
>>> rng = np.random.default_rng(0)
>>> sites = simulate.label(simulate.rings((32, 40), count=3, radius=5.0, rng=rng), rng, density=0.5, linker=0.1)
>>> movie = simulate.Movie(sites, (32, 40), frames=6, blinking=simulate.Blinking(on_rate=0.1))
>>> [chunk.shape for chunk in movie.chunks(rng)], movie.truth.dtype.names[:3]
([(6, 32, 40)], ('frame', 'x', 'y'))
"""

from ..lazy import lazily

__getattr__, __dir__ = lazily(
    __name__,
    blinking="Blinking",
    config="from_config",
    isolated="blinking_movie filaments",
    movie="Movie random_field spots",
    structures="from_image from_table grid label lines nuclear_pores points rings siemens_star",
)

__all__ = [
    "Blinking",
    "Movie",
    "blinking_movie",
    "filaments",
    "from_config",
    "from_image",
    "from_table",
    "grid",
    "label",
    "lines",
    "nuclear_pores",
    "points",
    "random_field",
    "rings",
    "siemens_star",
    "spots",
]
