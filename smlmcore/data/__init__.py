"""Movies and tables in and out of files.

`open_movie` reads TIFF (OME, ImageJ, BigTIFF) and Picasso `.raw` movies in chunks, `write_tiff` writes them;
`read_picasso`/`write_picasso` and `read_thunderstorm`/`write_thunderstorm` carry tables of localizations.
"""

from .files import DataError, atomic, atomic_folder, refuse_existing
from .movie import Movie, open_movie, read_yaml, write_tiff
from .tables import read_picasso, read_thunderstorm, table, write_picasso, write_thunderstorm

__all__ = [
    "DataError",
    "Movie",
    "atomic",
    "atomic_folder",
    "open_movie",
    "read_picasso",
    "read_thunderstorm",
    "read_yaml",
    "refuse_existing",
    "table",
    "write_picasso",
    "write_thunderstorm",
    "write_tiff",
]
