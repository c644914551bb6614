"""Features of photographs, verified matches and tracks."""

from .features import LONG_SIDE as LONG_SIDE
from .features import Features as Features
from .features import detect as detect
from .pairs import FEWEST as FEWEST
from .pairs import RATIO as RATIO
from .pairs import PairMatches as PairMatches
from .pairs import nearest_both_ways as nearest_both_ways
from .pairs import verify as verify
from .tracks import Tracks as Tracks
from .tracks import link as link
