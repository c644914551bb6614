"""Cameras from feature tracks, and the dense scene brought onto them."""

from .find import TrackMode as TrackMode
from .find import find_tracks as find_tracks
from .heldout import place_by_tracks as place_by_tracks
from .ruler import unaligned as unaligned
from .settle import settle as settle
from .straighten import lens_radials as lens_radials
from .straighten import straightened as straightened
