"""Movies and tables in and out of files, and data sets to learn from.

`open_movie` reads movies of many kinds in chunks (see docs/files.md), `write_tiff` writes them.  `Localizations` is a
table with what belongs to it; its `load` and `save` know Picasso, ThunderSTORM, the SMLM challenge, SMAP and
storm-analysis, whose readers and writers are here by name as well.  `sets` holds `ImageSet`, its sources and more.
"""

from ..files import DataError, atomic, atomic_folder, refuse_existing
from ..lazy import lazily
from .movie import Movie, open_movie, read_yaml, write_tiff
from .tables import join, read_picasso, read_thunderstorm, table, take, write_picasso, write_thunderstorm

__getattr__, __dir__ = lazily(
    __name__,
    exchange="read_challenge read_smap read_storm_analysis write_challenge write_smap write_storm_analysis",
    localizations="Localizations",
    sets="ImageSet",
)

__all__ = [
    "DataError",
    "ImageSet",
    "Localizations",
    "Movie",
    "atomic",
    "atomic_folder",
    "join",
    "open_movie",
    "read_challenge",
    "read_picasso",
    "read_smap",
    "read_storm_analysis",
    "read_thunderstorm",
    "read_yaml",
    "refuse_existing",
    "table",
    "take",
    "write_challenge",
    "write_picasso",
    "write_smap",
    "write_storm_analysis",
    "write_thunderstorm",
    "write_tiff",
]
