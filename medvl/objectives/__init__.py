"""Alignment losses: pure functions of gathered features and the positives."""

from medvl.catalogue import Catalogue
from medvl.features import Objective
from medvl.objectives.clip import Clip
from medvl.objectives.convirt import Convirt
from medvl.objectives.cxrclip import Cxrclip
from medvl.objectives.mgca import Mgca
from medvl.objectives.multi import Multi
from medvl.objectives.symile import Symile

__all__ = ["OBJECTIVES", "Clip", "Convirt", "Cxrclip", "Mgca", "Multi", "Symile"]

OBJECTIVES: Catalogue[Objective] = Catalogue("objective")
OBJECTIVES.add("clip")(Clip)
OBJECTIVES.add("convirt")(Convirt)
OBJECTIVES.add("cxrclip")(Cxrclip)
OBJECTIVES.add("mgca")(Mgca)
OBJECTIVES.add("multi")(Multi)
OBJECTIVES.add("symile")(Symile)
